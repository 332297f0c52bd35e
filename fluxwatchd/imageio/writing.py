"""Picture -> file: rounded, in the source's profile and depth, with its metadata mended."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fluxwatchd.errors import JobFailed
from fluxwatchd.imageio import colour, extended, iptc, png, xmp
from fluxwatchd.imageio import exif as exif_block
from fluxwatchd.imageio.packet import BrokenXmp
from fluxwatchd.imageio.picture import Floats, Metadata, Picture

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tiff", "avif": ".avif"}
SAME = {"JPEG": "jpeg", "WEBP": "webp", "TIFF": "tiff", "AVIF": "avif"}
"""What "same" gives; the other formats that are read become png."""

DEEP = frozenset({"png", "tiff"})
COLOUR_ONLY = frozenset({"webp", "avif"})
"""Formats that turn grey into RGB, or its profile to nothing."""
LONGEST = {"jpeg": 65_500, "webp": 16_383, "avif": 65_536}
TIFF_BYTES = 4_000_000_000
"""A TIFF's offsets have 32 bits; what more a BigTIFF could hold, few programs read."""

THUMBNAIL = (160, 160)
SAMPLES_AT_ONCE = 1 << 22
DITHER_SEED = 0
SEGMENT = 65_533
JPEG_DENSITY = 65_535
LARGEST_DPI = 100_000_000.0
"""px per inch that every format can say; a PNG says them in 32 bits, of a metre."""
XMP_SEGMENT = SEGMENT - 29


@dataclass(frozen=True, slots=True)
class Encoding:
    """What an encoder gets: samples by strips of rows, and what stands beside them.

    ``shape`` is (H, W, C); ``strips`` are (h, W, C) from top to bottom, uint16 where ``deep``, else
    uint8; they are made as they are taken, once.
    """

    shape: tuple[int, int, int]
    strips: Iterator[NDArray[Any]]
    deep: bool
    alpha: bool
    quality: int
    metadata: Metadata


Encoder = Callable[[Encoding, BinaryIO, list[str]], None]


def suffix(format: str, picture: Picture) -> str:
    """The output's suffix, with its dot. ``format``: png, jpeg, webp, tiff, avif or same."""
    return SUFFIXES[_resolved(format, picture)]


def _resolved(format: str, picture: Picture) -> str:
    """``same`` put in terms of the others."""
    return SAME.get(picture.format, "png") if format == "same" else format


def write(
    picture: Picture,
    target: Path | str | BinaryIO,
    *,
    format: str = "png",
    quality: int = 95,
    scale: float = 1.0,
    strip_gps: bool = False,
    provenance: Mapping[str, object] | None = None,
) -> tuple[str, ...]:
    """Encode ``picture`` into ``target``; returns notes on what the format could not hold.

    ``format`` as in ``suffix``. ``quality`` 1..100 for jpeg, webp and avif; webp at 100 is
    lossless. ``scale`` is output side / source side: resolution (dpi) grows by it, so the print
    keeps its size. ``strip_gps`` takes the place out of EXIF and XMP. ``provenance`` goes into
    XMP (see xmp.with_provenance). 16 bits stay 16 in png and tiff, and are dithered to 8
    elsewhere. png and tiff are written strip by strip, the others take 4 bytes a px; an open
    ``target`` is empty, and for tiff it can seek and be read back. Raises JobFailed where the
    picture is too large for the format.
    """
    kind = _resolved(format, picture)
    _refuse_too_large(picture, kind)
    notes = list(picture.notes)
    metadata = _mended(picture, kind, scale, strip_gps, notes)
    if provenance is not None:
        metadata = _with_provenance(metadata, provenance, notes)
    encoding = _encoding(picture, kind, quality, metadata, notes)
    if isinstance(target, (str, os.PathLike)):
        with Path(target).open("w+b") as file:
            _ENCODERS[kind](encoding, file, notes)
    else:
        _ENCODERS[kind](encoding, target, notes)
    return tuple(notes)


def refuse_too_long(size: tuple[int, int], format: str, source: str) -> None:
    """Raise JobFailed where a side of ``size`` (width, height), px, is more than ``format`` holds.

    ``source`` is the source's format, for ``same``.
    """
    kind = SAME.get(source, "png") if format == "same" else format
    if max(size) > LONGEST.get(kind, max(size)):
        raise _too_large(size, kind)


def _too_large(size: tuple[int, int], kind: str) -> JobFailed:
    return JobFailed(
        f"{size[0]} x {size[1]} px is more than {kind} can hold",
        hint='Set format = "png", or lower scale.',
    )


def _refuse_too_large(picture: Picture, kind: str) -> None:
    """Raise JobFailed where the format's own numbers are too small for the picture."""
    refuse_too_long((picture.width, picture.height), kind, "")
    channels = picture.pixels.shape[2] + (picture.alpha is not None)
    size = picture.width * picture.height * channels * picture.depth // 8
    if kind == "tiff" and size > TIFF_BYTES:
        raise _too_large((picture.width, picture.height), kind)


# --- samples --------------------------------------------------------------------------------


def _encoding(
    picture: Picture, kind: str, quality: int, metadata: Metadata, notes: list[str]
) -> Encoding:
    """How the picture becomes integers of the output's depth, alpha beside the colours."""
    flatten = kind == "jpeg" and picture.alpha is not None
    if flatten:
        notes.append("alpha was flattened onto white: JPEG has none")
    deep = picture.depth == 16 and kind in DEEP
    dither = picture.depth == 16 and not deep
    if dither:
        notes.append(f"16 bits were dithered to 8: {kind} has no more")
    icc = metadata.icc if metadata.icc and not colour.is_srgb(metadata.icc) else None
    has_alpha = picture.alpha is not None and not flatten
    channels = picture.pixels.shape[2] + has_alpha
    return Encoding(
        shape=(picture.height, picture.width, channels),
        strips=_strips(picture, icc, deep=deep, dither=dither, flatten=flatten),
        deep=deep,
        alpha=has_alpha,
        quality=quality,
        metadata=metadata,
    )


def _strips(
    picture: Picture, icc: bytes | None, *, deep: bool, dither: bool, flatten: bool
) -> Iterator[NDArray[Any]]:
    """Floats -> the profile's space -> integers, some rows at a time."""
    random, beside = (
        # of their own: what alpha is rounded by must not depend on where strips end
        (np.random.default_rng(seed) if dither else None)
        for seed in (DITHER_SEED, DITHER_SEED + 1)
    )
    step = max(1, SAMPLES_AT_ONCE // max(1, picture.pixels[0].size))
    for top in range(0, picture.height, step):
        pixels = picture.pixels[top : top + step]
        alpha = None if picture.alpha is None else picture.alpha[top : top + step, :, None]
        if flatten and alpha is not None:
            pixels, alpha = pixels * alpha + (1 - alpha), None
        if icc:
            pixels = colour.from_srgb(pixels, icc)
        parts = [quantised(pixels, deep=deep, random=random)]
        if alpha is not None:
            parts.append(quantised(alpha, deep=deep, random=beside))
        yield np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]


def quantised(
    values: Floats, *, deep: bool, random: np.random.Generator | None = None
) -> NDArray[Any]:
    """0..1 -> 0..255 or (``deep``) 0..65535, to the nearest; values outside are clipped.

    ``random`` dithers: a value is rounded up with the probability of its fraction, so the mean of
    an area is kept, and a value that 8 bits can hold stays as it is.
    """
    scaled = np.clip(values, 0, 1)
    scaled *= np.float32(65535 if deep else 255)
    if random is not None:
        # A float32 a hair below a whole number is that number, not the one below.
        scaled = np.floor(scaled + random.random(scaled.shape, np.float32) * 0.999 + 5e-4)
    return np.rint(scaled, out=scaled).astype(np.uint16 if deep else np.uint8)


# --- metadata -------------------------------------------------------------------------------


def _mended(
    picture: Picture, kind: str, scale: float, strip_gps: bool, notes: list[str]
) -> Metadata:
    """The source's metadata made true for this picture."""
    old = picture.metadata
    dpi = None
    if old.dpi:
        dpi = min(old.dpi[0] * scale, LARGEST_DPI), min(old.dpi[1] * scale, LARGEST_DPI)
    exif, packet = old.exif, old.xmp
    if exif:
        try:
            thumbnail = _thumbnail(picture) if exif_block.has_thumbnail(exif) else None
            exif = exif_block.mend(
                exif,
                width=picture.width,
                height=picture.height,
                dpi=dpi,
                thumbnail=thumbnail,
                strip_gps=strip_gps,
            )
        except exif_block.BrokenExif as error:
            notes.append(f"EXIF was left out: it is damaged ({error})")
            exif = None
    if packet:
        try:
            packet = xmp.mend(
                packet,
                width=picture.width,
                height=picture.height,
                dpi=dpi,
                mime=f"image/{kind}",
                strip_gps=strip_gps,
            )
        except BrokenXmp as error:
            notes.append(f"XMP was left out: it is damaged ({error})")
            packet = None
    icc = _profile(picture, kind)
    if old.icc and icc is None and kind in COLOUR_ONLY:
        notes.append(f"the colour profile was left out: {kind} keeps those of RGB pictures alone")
    text = tuple(one for one in old.text if not (strip_gps and _tells_place(*one)))
    return Metadata(icc, exif, packet, old.iptc, dpi, text)


def _tells_place(keyword: str, text: str) -> bool:
    """Whether a text is a GPS property by its keyword, or XML that has one."""
    return "gps" in keyword.lower() or ("<" in text and "gps" in text.lower())


def _profile(picture: Picture, kind: str) -> bytes | None:
    """The colour profile that goes with these pixels; WebP and AVIF turn grey into RGB."""
    icc = picture.metadata.icc
    grey = picture.pixels.shape[2] == 1
    if grey and kind in COLOUR_ONLY:
        return None
    return icc if colour.usable(icc, "gray" if grey else "rgb") else None


def _thumbnail(picture: Picture) -> bytes:
    """A small JPEG of the picture, for EXIF."""
    step = max(1, min(picture.width, picture.height) // (2 * THUMBNAIL[0]))
    small = quantised(picture.pixels[::step, ::step], deep=False)
    image = Image.fromarray(small[..., 0] if small.shape[2] == 1 else small)
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75)
    return out.getvalue()


def _with_provenance(
    metadata: Metadata, provenance: Mapping[str, object], notes: list[str]
) -> Metadata:
    """``metadata`` with provenance in its XMP."""
    try:
        packet = xmp.with_provenance(metadata.xmp, provenance)
    except BrokenXmp:
        notes.append("XMP was replaced by our provenance: it had no place for it")
        packet = xmp.with_provenance(None, provenance)
    return replace(metadata, xmp=packet)


# --- encoders -------------------------------------------------------------------------------


def _png(encoding: Encoding, target: BinaryIO, notes: list[str]) -> None:
    """PNG, 8 or 16 bits, strip by strip."""
    del notes  # a PNG holds everything
    chunks = _png_chunks(encoding.metadata)
    png.write(target, encoding.shape, encoding.strips, deep=encoding.deep, chunks=chunks)


def _png_chunks(metadata: Metadata) -> list[bytes]:
    """iCCP, pHYs, eXIf, XMP as iTXt, IPTC as ImageMagick's raw profile, texts as iTXt."""
    chunks = []
    if metadata.icc:
        chunks.append(png.chunk(b"iCCP", b"icc\0\0" + zlib.compress(metadata.icc)))
    if metadata.dpi:
        x, y = (round(per_inch / 0.0254) for per_inch in metadata.dpi)
        chunks.append(png.chunk(b"pHYs", struct.pack(">IIB", x, y, 1)))
    if metadata.exif:
        chunks.append(png.chunk(b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append(png.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.iptc:
        text = iptc.raw_profile(metadata.iptc).encode()
        chunks.append(png.chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(text)))
    for keyword, value in metadata.text:
        named = keyword.encode("latin-1", "replace")[:79]
        chunks.append(png.chunk(b"iTXt", named + b"\0\0\0\0\0" + value.encode("utf-8", "replace")))
    return chunks


def _tiff(encoding: Encoding, target: BinaryIO, notes: list[str]) -> None:
    """TIFF by tifffile, strip by strip."""
    from fluxwatchd.imageio import tiff

    _note_text(encoding.metadata.text, "TIFF", notes)
    if encoding.metadata.exif and exif_block.has_thumbnail(encoding.metadata.exif):
        notes.append("EXIF's thumbnail was left out: a TIFF's would be a picture of its own")
    tiff.write(
        target,
        encoding.shape,
        encoding.strips,
        deep=encoding.deep,
        alpha=encoding.alpha,
        metadata=encoding.metadata,
    )


def _jpeg(encoding: Encoding, target: BinaryIO, notes: list[str]) -> None:
    """JPEG by Pillow; no chroma subsampling from quality 90 on."""
    metadata, extra = encoding.metadata, b""
    options = _common(metadata)
    options.pop("xmp", None)
    if metadata.iptc:
        block = iptc.resources(metadata.iptc)
        if len(block) <= SEGMENT:
            extra = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
        else:
            notes.append("IPTC was left out: it is longer than a JPEG segment")
    try:
        packet, further = extended.divided(metadata.xmp or b"", XMP_SEGMENT)
    except BrokenXmp as error:
        notes.append(f"XMP was left out: {error}")
        packet, further = b"", ()
    for segment in further:
        extra += b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    options |= {"xmp": packet} if packet else {}
    if len(metadata.exif or b"") > SEGMENT - 6:
        notes.append("EXIF was left out: it is longer than a JPEG segment")
        options.pop("exif")
    comments = [text.encode() for keyword, text in metadata.text if keyword == "Comment"]
    if comments and 0 < len(comments[0]) <= SEGMENT:
        options["comment"] = comments.pop(0)
    others = [one for one in metadata.text if one[0] != "Comment"]
    _note_text([*others, *[("Comment", "")] * len(comments)], "JPEG", notes)
    if max(metadata.dpi or (0, 0)) > JPEG_DENSITY:
        options.pop("dpi")  # JFIF has 16 bits for it; EXIF keeps it where there is one
    options["extra"] = extra
    options["subsampling"] = 0 if encoding.quality >= 90 else 2
    _pillow(encoding, target, "JPEG", options)


def _webp(encoding: Encoding, target: BinaryIO, notes: list[str]) -> None:
    """WebP by Pillow; the colour under transparent pixels is kept."""
    _note_missing(encoding.metadata, "WebP", notes)
    if encoding.shape[2] < 3:
        notes.append("grey became RGB: WebP has no grey")
    options = _common(encoding.metadata) | {"exact": True, "lossless": encoding.quality == 100}
    options.pop("dpi", None)
    _pillow(encoding, target, "WEBP", options)


def _avif(encoding: Encoding, target: BinaryIO, notes: list[str]) -> None:
    """AVIF by Pillow; no chroma subsampling from quality 90 on."""
    _note_missing(encoding.metadata, "AVIF", notes)
    if encoding.shape[2] == 2:
        notes.append("grey became RGB: it has alpha, which AVIF keeps beside RGB here")
    options = _common(encoding.metadata)
    options.pop("dpi", None)
    if "exif" in options:
        options["exif"] = exif_block.without_orientation(options["exif"])
    if encoding.shape[2] == 1:
        options["subsampling"] = "4:0:0"
    else:
        options["subsampling"] = "4:4:4" if encoding.quality >= 90 else "4:2:0"
    _pillow(encoding, target, "AVIF", options)


def _note_missing(metadata: Metadata, name: str, notes: list[str]) -> None:
    """Say what had no place in a format that holds ICC, EXIF and XMP alone."""
    if metadata.iptc:
        notes.append(f"IPTC was left out: {name} has no place for it")
    if metadata.dpi and not (metadata.exif and exif_block.resolution(metadata.exif)):
        notes.append(f"the resolution was left out: {name} has no place for it outside EXIF")
    _note_text(metadata.text, name, notes)


def _note_text(text: Sequence[tuple[str, str]], name: str, notes: list[str]) -> None:
    """Say which texts had no place."""
    if text:
        keywords = ", ".join(keyword for keyword, _ in text)
        notes.append(f"text was left out ({keywords}): {name} has no place for it")


def _common(metadata: Metadata) -> dict[str, Any]:
    """Pillow's options for what stands beside the pixels."""
    given = {
        "icc_profile": metadata.icc,
        "exif": b"Exif\0\0" + metadata.exif if metadata.exif else None,
        "xmp": metadata.xmp,
        "dpi": metadata.dpi,
    }
    return {name: value for name, value in given.items() if value}


def _pillow(encoding: Encoding, target: BinaryIO, name: str, options: dict[str, Any]) -> None:
    """Encode 8-bit samples by Pillow, which needs the whole picture."""
    height, width, channels = encoding.shape
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    image, top = Image.new(mode, (width, height)), 0
    for strip in encoding.strips:
        image.paste(Image.fromarray(strip[..., 0] if mode == "L" else strip), (0, top))
        top += len(strip)
    image.save(target, name, quality=encoding.quality, **options)


_ENCODERS: Mapping[str, Encoder] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "tiff": _tiff,
    "avif": _avif,
}
