"""file -> Picture: decoded whole or refused, upright, in sRGB's space, nothing else lost."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fluxwatchd.imageio import avif, colour, jp2, jpeg, multiplied
from fluxwatchd.imageio.carrying import carried
from fluxwatchd.imageio.containers import PNG_MAGIC, png_chunks, refuse_short_png
from fluxwatchd.imageio.faults import decoding
from fluxwatchd.imageio.inspecting import (
    HEAD,
    MULTIPLIED,
    Animated,
    Opened,
    inspect,
    pnm_head,
)
from fluxwatchd.imageio.picture import Floats, Picture

PNG_PIXELS = (b"IHDR", b"tRNS", b"IDAT", b"IEND")


@dataclass(frozen=True, slots=True)
class Raster:
    """Decoded samples as the file stores them.

    ``colour`` (H, W, C) of uint8 or uint16, 0..``largest``; ``alpha`` (H, W) likewise or None.
    ``space`` is rgb, gray or cmyk.
    """

    colour: NDArray[Any]
    alpha: NDArray[Any] | None
    largest: int
    space: str


def read(
    source: Path | str | bytes,
    *,
    animated: Animated = "refuse",
    max_pixels: int | None = None,
    name: str | None = None,
) -> Picture:
    """Decode ``source``, a path or the file's bytes, whole.

    ``animated`` = "first" takes the first of several pictures instead of refusing them.
    ``max_pixels`` limits width x height, px (None: 400 million). ``name`` is what errors call the
    file; a path has its own. The file is opened and read once; a caller who hashed its bytes and
    passes them has that content decoded. Raises InputRejected (``transient`` where the file may
    still be arriving), OutOfMemory, and OSError where a path cannot be opened.
    """
    if isinstance(source, bytes):
        return _decode(source, name or "picture", animated, max_pixels)
    name = name or Path(source).name
    with Path(source).open("rb") as file:
        inspect(file, name, animated, max_pixels)
        with decoding(name):
            file.seek(0)
            data = file.read()
    return _decode(data, name, animated, max_pixels)


def _decode(data: bytes, name: str, animated: Animated, max_pixels: int | None) -> Picture:
    """Bytes -> Picture, in steps."""
    opened = inspect(io.BytesIO(data), name, animated, max_pixels)
    notes = list(opened.notes)
    if opened.header.frames > 1:
        notes.append(f"the first of {opened.header.frames} pictures was taken")
    with decoding(opened.name):
        raster = _raster(opened, data)
        metadata = carried(opened, notes)
        pixels, icc = _to_srgb(raster, metadata.icc, notes)
        alpha = None if raster.alpha is None else _unit(raster.alpha, raster.largest)
    return Picture(
        pixels=_upright(pixels, opened.orientation),
        alpha=None if alpha is None else _upright(alpha, opened.orientation),
        depth=opened.header.depth,
        format=opened.header.format,
        mode=opened.header.mode,
        metadata=replace(metadata, icc=icc),
        notes=tuple(notes),
    )


def _unit(samples: NDArray[Any], largest: int) -> Floats:
    """0..``largest`` -> 0..1, rounded correctly: times ``largest`` it gives the samples again."""
    values = samples.astype(np.float32)
    values /= np.float32(largest)
    return values


def _upright(array: Floats, orientation: int) -> Floats:
    """Turn (H, W, ...) as EXIF's orientation (1..8) says, once."""
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


# --- colour ---------------------------------------------------------------------------------


def _to_srgb(raster: Raster, icc: bytes | None, notes: list[str]) -> tuple[Floats, bytes | None]:
    """Pixels (H, W, 1 or 3), through the profile where there is one that works.

    And the profile that the result may carry; ``notes`` gets what becomes of the others.
    """
    if raster.space == "cmyk":
        return _from_cmyk(raster, icc, notes), None
    pixels = _unit(raster.colour, raster.largest)
    if icc is None:
        return pixels, None
    if not colour.usable(icc, raster.space, back=False):
        notes.append(f"the colour profile was left out: it is damaged, or not of {raster.space}")
        return pixels, None
    if colour.is_srgb(icc):
        return pixels, icc
    converted = colour.to_srgb(pixels, icc)
    if colour.usable(icc, raster.space):
        return converted, icc
    notes.append("the picture became sRGB: its colour profile can only be read from")
    return np.clip(converted, 0, 1), None


def _from_cmyk(raster: Raster, icc: bytes | None, notes: list[str]) -> Floats:
    """CMYK leaves as RGB without its profile: what sRGB cannot hold is cut off here."""
    if colour.usable(icc, "cmyk", back=False):
        notes.append("CMYK became sRGB, through its colour profile")
        return np.clip(colour.to_srgb(_full(raster.colour, raster.largest), icc or b""), 0, 1)
    notes.append("CMYK became sRGB by a plain formula: it has no colour profile that works")
    return _naive_cmyk(raster)


def _full(samples: NDArray[Any], largest: int) -> NDArray[Any]:
    """0..``largest`` -> the whole range of uint8 or uint16, which is what LittleCMS knows."""
    return samples if largest in (255, 65535) else _widened(samples, largest)


def _widened(samples: NDArray[Any], largest: int) -> NDArray[Any]:
    """0..``largest`` -> 0..65535."""
    return ((samples.astype(np.uint32) * 65535 + largest // 2) // largest).astype(np.uint16)


def _naive_cmyk(raster: Raster) -> Floats:
    """CMYK without a profile: what ink leaves of white, as Pillow and browsers do."""
    ink = _unit(raster.colour, raster.largest)
    left: Floats = (1 - ink[..., :3]) * (1 - ink[..., 3:])
    return left


# --- samples --------------------------------------------------------------------------------


def _raster(opened: Opened, data: bytes) -> Raster:
    """Decode by the library that keeps the file's depth."""
    header = opened.header
    if header.format == "TIFF":
        return _tiff_raster(opened)
    if header.format == "HEIF":
        return _heif_raster(opened)
    if header.format == "WEBP" and header.frames == 1:
        return _webp_raster(opened, data)
    if header.depth == 16:
        return _DEEP[header.format](opened, data)
    if header.mode == "L" and "transparency" in opened.decoder.info:
        # Pillow widens 2 and 4 bits of grey to 8, but not the grey that is transparent.
        opened.decoder.info["transparency"] *= {2: 85, 4: 17}.get(opened.bits, 1)
    if header.format == "PNG":
        refuse_short_png(opened.file, opened.name)
    if header.format == "JPEG":
        bands = len(opened.decoder.getbands())
        jpeg.refuse_damaged(data, bands, opened.name)
    raster = _pillow_raster(opened.decoder, header.mode)
    return raster if header.format != "JPEG2000" else _unshifted(raster, opened, data)


def _pillow_raster(image: Image.Image, mode: str) -> Raster:
    """8 bits a channel, palettes and bilevel, by Pillow."""
    image.load()
    if image.mode == "CMYK":
        return Raster(np.asarray(image), None, 255, "cmyk")
    grey = image.mode in ("1", "L", "LA", "La", "I;16") or mode in ("L", "LA")
    alpha = image.has_transparency_data
    wanted = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
    if grey and image.mode in ("RGB", "RGBA"):
        image = image.getchannel(0) if not alpha else image.convert("LA")
    samples = np.asarray(image.convert(wanted) if image.mode != wanted else image)
    return _split(samples, 255, "gray" if grey else "rgb")


def _split(samples: NDArray[Any], largest: int, space: str) -> Raster:
    """(H, W) or (H, W, C) with or without a last channel of alpha."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    channels = 1 if space == "gray" else 3
    alpha = samples[..., channels] if samples.shape[2] > channels else None
    return Raster(samples[..., :channels], alpha, largest, space)


def _space(samples: NDArray[Any]) -> str:
    """Grey or RGB by the number of channels: 1 and 2, or 3 and 4."""
    return "gray" if samples.ndim == 2 or samples.shape[2] < 3 else "rgb"


def _png_raster(opened: Opened, _data: bytes) -> Raster:
    """16-bit PNG by libpng: Pillow 13 reads 16-bit colour as 8."""
    import imagecodecs

    # libpng prints its doubts about a profile or a text on stderr; it gets the pixels alone.
    pixels = [PNG_MAGIC]
    for kind, place, size in png_chunks(opened.file):
        if kind in PNG_PIXELS:
            opened.file.seek(place - 8)
            pixels.append(opened.file.read(size + 12))
    samples = imagecodecs.png_decode(b"".join(pixels))
    return _split(samples, 65535, _space(samples))


def _webp_raster(opened: Opened, data: bytes) -> Raster:
    """WebP row by row: Pillow clears a canvas of the size that the header claims first."""
    import imagecodecs

    samples = imagecodecs.webp_decode(data, hasalpha=opened.header.mode == "RGBA")
    _same_size(opened, samples)
    return _split(samples, 255, "rgb")


def _j2k_raster(opened: Opened, data: bytes) -> Raster:
    """More than 8 bits of JPEG 2000, by OpenJPEG."""
    samples = _j2k_samples(opened, data)
    largest = (1 << max(jp2.depths(data[:HEAD], ycc=False, name=opened.name))) - 1
    if opened.header.mode.startswith("CMYK"):
        return Raster(samples, None, largest, "cmyk")
    return _split(samples, largest, _space(samples))


def _j2k_samples(opened: Opened, data: bytes) -> NDArray[Any]:
    """JPEG 2000 as it is stored, a palette looked up."""
    import imagecodecs

    samples: NDArray[Any] = imagecodecs.jpeg2k_decode(data)
    _same_size(opened, samples)
    return samples


def _unshifted(raster: Raster, opened: Opened, data: bytes) -> Raster:
    """JPEG 2000 under 8 bits: Pillow only shifts it up, so that white would be grey.

    Channels may differ in depth (a mask of 1 bit as alpha). A palette's index is shifted as well.
    """
    bits = jp2.depths(data[:HEAD], ycc=False, name=opened.name)
    if set(bits) == {8}:
        return raster
    if opened.header.mode == "P":
        samples = _j2k_samples(opened, data)
        return _split(samples, 255, _space(samples))
    planes = [*np.moveaxis(raster.colour, 2, 0), *([] if raster.alpha is None else [raster.alpha])]
    full = [_widened(p >> (8 - b), (1 << b) - 1) for p, b in zip(planes, bits, strict=True)]
    return replace(
        raster,
        colour=np.stack(full[: raster.colour.shape[2]], -1),
        alpha=None if raster.alpha is None else full[-1],
        largest=65535,
    )


def _avif_raster(opened: Opened, data: bytes) -> Raster:
    """10 and 12 bits of AVIF, by libavif."""
    import imagecodecs

    samples = imagecodecs.avif_decode(data, index=0)
    _same_size(opened, samples)
    bits = 12 if any(flag & avif.TWELVE for flag in avif.flags(data[:HEAD])) else 10
    if opened.header.mode.startswith("L") and samples.ndim == 3 and samples.shape[2] >= 3:
        samples = samples[..., [0, 3]] if samples.shape[2] == 4 else samples[..., 0]
    return _split(samples, (1 << bits) - 1, _space(samples))


def _pnm_raster(opened: Opened, data: bytes) -> Raster:
    """PGM and PPM with a maxval above 255: big endian, or decimal numbers (netpbm's manual)."""
    width, height, largest, start = pnm_head(data[:HEAD])
    channels = 3 if data[1:2] in b"36" else 1
    count = width * height * channels
    if data[1:2] in b"56":
        samples = np.frombuffer(data, ">u2", count, start).astype(np.uint16)
    else:
        samples = np.array(data[start:].split(maxsplit=count)[:count], dtype=np.uint16)
    if samples.size and int(samples.max()) > largest:
        raise ValueError("a sample above the header's maxval")
    return _split(
        samples.reshape(height, width, channels), largest, "rgb" if channels == 3 else "gray"
    )


_DEEP = {"PNG": _png_raster, "JPEG2000": _j2k_raster, "AVIF": _avif_raster, "PPM": _pnm_raster}


def _heif_raster(opened: Opened) -> Raster:
    """HEIC; pillow-heif has turned it already and says so."""
    heif = opened.decoder
    samples = np.asarray(heif)
    deep = opened.header.depth == 16
    largest = (1 << int(heif.info["bit_depth"])) - 1 if deep else 255
    _same_size(opened, samples)
    raster = _split(samples, largest, _space(samples))
    if raster.alpha is None or not heif.mode.startswith(MULTIPLIED):
        return raster
    return replace(raster, colour=multiplied.straight(raster.colour, raster.alpha, largest))


def _tiff_raster(opened: Opened) -> Raster:
    """TIFF of any depth."""
    from fluxwatchd.imageio import tiff

    samples, alpha, largest = tiff.samples(opened.decoder)
    mode = opened.header.mode.removesuffix(";16")
    space = {"CMYK": "cmyk", "CMYKA": "cmyk", "RGB": "rgb", "RGBA": "rgb", "P": "rgb"}
    return Raster(samples, alpha, largest, space.get(mode, "gray"))


def _same_size(opened: Opened, samples: NDArray[Any]) -> None:
    """Headers inside headers must agree."""
    stored = {samples.shape[:2], samples.shape[1::-1]}
    if (opened.header.height, opened.header.width) not in stored:
        raise ValueError("its two headers disagree on the size")
