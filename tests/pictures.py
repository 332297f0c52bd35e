"""A corpus of picture files, one of every mode that is read, made when asked for."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

Array = NDArray[Any]
HEIGHT, WIDTH = 23, 37


@dataclass(frozen=True, slots=True)
class Sample:
    """A file and what must be read from it; ``colour`` None where the format is lossy.

    ``colour`` (H, W, C) and ``alpha`` (H, W) are integers of 0..``largest``; ``ink`` (H, W, 4) is
    what was put into a CMYK file, likewise.
    """

    name: str
    data: bytes
    mode: str
    depth: int
    channels: int
    colour: Array | None
    alpha: Array | None
    largest: int
    has_alpha: bool
    ink: Array | None = None


def noise(channels: int, largest: int = 255, seed: int = 0) -> Array:
    """(23, 37, C) of every value from 0 to ``largest``."""
    kind = np.uint8 if largest < 256 else np.uint16
    random = np.random.default_rng(seed)
    return random.integers(0, largest, (HEIGHT, WIDTH, channels), kind, endpoint=True)


def smooth(channels: int, largest: int = 255) -> Array:
    """(23, 37, C), a slope in every channel: lossy formats keep it nearly."""
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    planes = [x, y, (x + y) / 2, 1 - x / 2][:channels]
    return np.rint(np.stack(planes, -1) * largest).astype(np.uint8 if largest < 256 else np.uint16)


def pillow(array: Array, mode: str, format: str, **options: Any) -> bytes:
    """``array`` encoded by Pillow."""
    image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    return encoded(image if image.mode == mode else image.convert(mode), format, **options)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def tiff(array: Array, **options: Any) -> bytes:
    """``array`` encoded by tifffile."""
    out = io.BytesIO()
    squeezed = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    tifffile.imwrite(out, squeezed, metadata=None, **options)
    return out.getvalue()


def interlaced_png(array: Array) -> bytes:
    """An Adam7 PNG (PNG 3rd edition, 8.2), which neither Pillow nor imagecodecs writes."""
    starts = [(0, 0), (0, 4), (4, 0), (0, 2), (2, 0), (0, 1), (1, 0)]
    steps = [(8, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1)]
    rows = b""
    for (y, x), (dy, dx) in zip(starts, steps, strict=True):
        part = array[y::dy, x::dx]
        rows += b"".join(b"\0" + _big(row) for row in part if row.size)
    deep, colour_type = array.dtype == np.uint16, {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2]]
    depth = 16 if deep else 8
    head = struct.pack(">IIBBBBB", *array.shape[1::-1], depth, colour_type, 0, 0, 1)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(array: Array) -> bytes:
    return bytes(imagecodecs.png_encode(array[..., 0].copy() if array.shape[2] == 1 else array))


def heic(array: Array, mode: str, **options: Any) -> bytes:
    out = io.BytesIO()
    height, width = array.shape[:2]
    pillow_heif.from_bytes(mode, (width, height), array.tobytes()).save(out, **options)
    return out.getvalue()


def _sample(
    name: str, data: bytes, mode: str, array: Array | None, *, largest: int = 255, channels: int = 0
) -> Sample:
    """A sample whose last channel is alpha if ``mode`` says so."""
    has_alpha = "A" in mode.removesuffix(";16").removesuffix("P")
    channels = channels or (1 if mode[0] in "L1" else 3)
    depth = 16 if mode.endswith(";16") else 8
    colour = alpha = None
    if array is not None:
        array = array[..., None] if array.ndim == 2 else array
        colour = array[..., :channels]
        alpha = array[..., channels] if has_alpha else None
    return Sample(name, data, mode, depth, channels, colour, alpha, largest, has_alpha)


def _ink(name: str, data: bytes, ink: Array, *, largest: int = 255, mode: str = "") -> Sample:
    """A CMYK sample without a profile."""
    depth = 16 if largest > 255 else 8
    mode = mode or ("CMYK;16" if depth == 16 else "CMYK")
    alpha = ink[..., 4] if ink.shape[2] > 4 else None
    return Sample(name, data, mode, depth, 3, None, alpha, largest, alpha is not None, ink[..., :4])


def _png() -> list[Sample]:
    grey, la, rgb, rgba = (noise(channels) for channels in (1, 2, 3, 4))
    bilevel = (noise(1) > 127)[..., 0]
    palette = Image.fromarray(rgb).quantize(37)
    clear = palette.copy()
    clear_data = encoded(clear, "PNG", transparency=bytes(range(0, 37 * 7, 7)))
    keyed = encoded(Image.fromarray(rgb), "PNG", transparency=tuple(map(int, rgb[0, 0])))
    key_alpha = np.where((rgb == rgb[0, 0]).all(-1), 0, 255)[..., None]
    deep = {channels: noise(channels, 65535) for channels in (1, 2, 3, 4)}
    return [
        _sample("bilevel.png", encoded(Image.fromarray(bilevel), "PNG"), "1", bilevel * 255),
        _sample("l.png", pillow(grey, "L", "PNG"), "L", grey),
        _sample("la.png", pillow(la, "LA", "PNG"), "LA", la),
        _sample("rgb.png", pillow(rgb, "RGB", "PNG"), "RGB", rgb),
        _sample("rgba.png", pillow(rgba, "RGBA", "PNG"), "RGBA", rgba),
        _sample("p.png", encoded(palette, "PNG"), "P", np.asarray(palette.convert("RGB"))),
        Sample(
            "pa.png",
            clear_data,
            "P",
            8,
            3,
            np.asarray(palette.convert("RGB")),
            np.asarray(palette) * 7,
            255,
            True,
        ),
        Sample("keyed.png", keyed, "RGB", 8, 3, rgb, key_alpha[..., 0], 255, True),
        _sample("interlaced.png", interlaced_png(rgb), "RGB", rgb),
        _sample("interlaced16.png", interlaced_png(deep[4]), "RGBA;16", deep[4], largest=65535),
        _sample("l16.png", deep_png(deep[1]), "L;16", deep[1], largest=65535),
        _sample("la16.png", deep_png(deep[2]), "LA;16", deep[2], largest=65535),
        _sample("rgb16.png", deep_png(deep[3]), "RGB;16", deep[3], largest=65535),
        _sample("rgba16.png", deep_png(deep[4]), "RGBA;16", deep[4], largest=65535),
        *(_narrow_png(bits) for bits in (2, 4)),
        *(_palette_png(bits) for bits in (1, 2, 4)),
        *(_keyed_png(bits) for bits in (1, 2, 4)),
        _keyed_deep_png(deep[1]),
        _keyed_deep_png(deep[3]),
    ]


def packed(values: Array, bits: int) -> list[bytes]:
    """Rows of (H, W) with so many bits a value, each filled up to whole bytes."""
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    return [
        int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big")
        for row in rows
    ]


def narrow_png(values: Array, bits: int, *chunks: tuple[bytes, bytes], colour: int = 0) -> bytes:
    """A PNG of (H, W) with 1, 2 or 4 bits: grey (``colour`` 0) or a palette (3)."""
    head = struct.pack(">IIBBBBB", *values.shape[::-1], bits, colour, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row for row in packed(values, bits)))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in parts)


def _narrow_png(bits: int) -> Sample:
    values, largest = noise(1, (1 << bits) - 1)[..., 0], (1 << bits) - 1
    return _sample(f"l{bits}.png", narrow_png(values, bits), "L", values, largest=largest)


@cache
def table(bits: int) -> Array:
    """A palette of as many colours as ``bits`` can number, (N, 3) uint8."""
    return np.random.default_rng(bits).integers(0, 256, (1 << bits, 3), np.uint8)


def _palette_png(bits: int) -> Sample:
    index = noise(1, (1 << bits) - 1)[..., 0]
    data = narrow_png(index, bits, (b"PLTE", table(bits).tobytes()), colour=3)
    return _sample(f"p{bits}.png", data, "P", table(bits)[index])


def _keyed_png(bits: int) -> Sample:
    values, largest = noise(1, (1 << bits) - 1)[..., 0], (1 << bits) - 1
    data = narrow_png(values, bits, (b"tRNS", struct.pack(">H", 1)))
    mode, alpha = "1" if bits == 1 else "L", np.where(values == 1, 0, largest)
    return Sample(f"keyed{bits}.png", data, mode, 8, 1, values[..., None], alpha, largest, True)


def _keyed_deep_png(array: Array) -> Sample:
    data, key = deep_png(array), struct.pack(f">{array.shape[2]}H", *map(int, array[0, 0]))
    data = data[:33] + png_chunk(b"tRNS", key) + data[33:]
    alpha = np.where((array == array[0, 0]).all(-1), 0, 65535)
    mode = "L;16" if array.shape[2] == 1 else "RGB;16"
    name = f"keyed-{mode[:-3].lower()}16.png"
    return Sample(name, data, mode, 16, array.shape[2], array, alpha, 65535, True)


def _jpeg_webp() -> list[Sample]:
    grey, rgb, cmyk, rgba = smooth(1), smooth(3), smooth(4), noise(4)
    ink = Image.frombytes("CMYK", (WIDTH, HEIGHT), cmyk.tobytes())
    return [
        _sample("l.jpg", pillow(grey, "L", "JPEG", quality=95), "L", None),
        _sample("rgb.jpg", pillow(rgb, "RGB", "JPEG", quality=95), "RGB", None),
        _sample("progressive.jpg", pillow(rgb, "RGB", "JPEG", progressive=True), "RGB", None),
        _ink("cmyk.jpg", encoded(ink, "JPEG", quality=95), cmyk),
        _ink("ycck.jpg", _ycck(cmyk), cmyk),
        _sample("rgb.webp", pillow(rgb, "RGB", "WEBP", quality=90), "RGB", None),
        _sample("lossless.webp", pillow(rgb, "RGB", "WEBP", lossless=True), "RGB", rgb),
        _sample("lossy-alpha.webp", pillow(smooth(4), "RGBA", "WEBP", quality=90), "RGBA", None),
        _sample("420.jpg", pillow(rgb, "RGB", "JPEG", quality=95, subsampling=2), "RGB", None),
        _sample("rgba.webp", pillow(rgba, "RGBA", "WEBP", lossless=True, exact=True), "RGBA", rgba),
    ]


def _ycck(ink: Array) -> bytes:
    """A JPEG as Photoshop writes it: turned, and in YCCK by its Adobe segment."""
    turned = np.ascontiguousarray(255 - ink)
    coded = imagecodecs.jpeg8_encode(turned, level=95, colorspace="CMYK", outcolorspace="YCCK")
    return bytes(coded)


def _tiff() -> list[Sample]:
    grey, la, rgb, rgba = (noise(channels) for channels in (1, 2, 3, 4))
    bilevel = (noise(1) > 127)[..., 0]
    palette = Image.fromarray(rgb).quantize(37)
    ink = Image.frombytes("CMYK", (WIDTH, HEIGHT), rgba.tobytes())
    deep = {channels: noise(channels, 65535) for channels in (1, 2, 3, 4)}
    unassociated: dict[str, Any] = {"extrasamples": ["unassalpha"]}
    samples = [
        _sample("bilevel.tif", encoded(Image.fromarray(bilevel), "TIFF"), "1", bilevel * 255),
        _sample("l.tif", tiff(grey), "L", grey),
        _sample("white.tif", tiff(255 - grey, photometric="miniswhite"), "L", grey),
        _sample("p.tif", encoded(palette, "TIFF"), "P", np.asarray(palette.convert("RGB"))),
        _sample("rgb.tif", tiff(rgb, photometric="rgb", compression="lzw"), "RGB", rgb),
        _sample(
            "planes.tif",
            tiff(np.moveaxis(rgb, 2, 0), photometric="rgb", planarconfig="separate"),
            "RGB",
            rgb,
        ),
        _sample("rgba.tif", tiff(rgba, photometric="rgb", **unassociated), "RGBA", rgba),
        _ink("cmyk.tif", encoded(ink, "TIFF"), rgba),
        _sample(
            "l16.tif",
            tiff(deep[1], byteorder=">", compression="zlib", predictor=True),
            "L;16",
            deep[1],
            largest=65535,
        ),
        _sample(
            "rgb16.tif",
            tiff(deep[3], photometric="rgb", bigtiff=True, tile=(16, 16)),
            "RGB;16",
            deep[3],
            largest=65535,
        ),
        _sample(
            "rgba16.tif",
            tiff(deep[4], photometric="rgb", **unassociated),
            "RGBA;16",
            deep[4],
            largest=65535,
        ),
    ]
    for name, bits in (("l4.tif", 4), ("l12.tif", 12)):
        values, largest = noise(1, (1 << bits) - 1), (1 << bits) - 1
        data = tiff(values, bitspersample=bits, photometric="minisblack")
        samples.append(_sample(name, data, "L" if bits < 8 else "L;16", values, largest=largest))
    fax = encoded(Image.fromarray(bilevel), "TIFF", compression="group4")
    runs = encoded(Image.fromarray(rgb), "TIFF", compression="packbits")
    inner = encoded(Image.fromarray(smooth(3)), "TIFF", compression="jpeg", quality=95)
    planes = tiff(
        np.moveaxis(deep[4], 2, 0),
        photometric="rgb",
        planarconfig="separate",
        tile=(16, 16),
        **unassociated,
    )
    samples += [
        _sample("fax.tif", fax, "1", bilevel * 255),
        _sample("packbits.tif", runs, "RGB", rgb),
        _sample("zstd.tif", tiff(rgb, photometric="rgb", compression="zstd"), "RGB", rgb),
        _sample("jpeg.tif", inner, "RGB", None),
        _sample("tiled-planes.tif", planes, "RGBA;16", deep[4], largest=65535),
        _ink("cmyk16.tif", separated(deep[4]), deep[4], largest=65535),
        _ink("cmyk4.tif", separated(noise(4, 15), bitspersample=4), noise(4, 15), largest=15),
        _ink(
            "cmyk12.tif",
            separated(noise(4, 4095), bitspersample=12),
            noise(4, 4095),
            largest=4095,
        ),
        _ink("cmyka.tif", separated(noise(5), **unassociated), noise(5), mode="CMYKA"),
    ]
    for name, array in (("la.tif", la), ("la16.tif", deep[2])):
        mode, largest = ("LA;16", 65535) if array.dtype == np.uint16 else ("LA", 255)
        data = tiff(array, photometric="minisblack", planarconfig="contig", **unassociated)
        samples.append(_sample(name, data, mode, array, largest=largest))
    return samples


def separated(ink: Array, **options: Any) -> bytes:
    """A CMYK TIFF, channels beside one another."""
    return tiff(ink, photometric="separated", planarconfig="contig", **options)


def _others() -> list[Sample]:
    grey, rgb, rgba = noise(1), noise(3), noise(4)
    deep1, deep3 = noise(1, 65535), noise(3, 65535)
    bilevel = (noise(1) > 127)[..., 0]
    palette = Image.fromarray(rgb).quantize(37)
    twelve = noise(3, 4095)
    plain = f"P3 # a comment\n{WIDTH} {HEIGHT}\n4095\n" + " ".join(map(str, twelve.ravel())) + "\n"
    size = f"{WIDTH} {HEIGHT}\n65535\n".encode()
    return [
        _sample("bilevel.bmp", encoded(Image.fromarray(bilevel), "BMP"), "1", bilevel * 255),
        _sample("p.bmp", encoded(palette, "BMP"), "P", np.asarray(palette.convert("RGB"))),
        _sample("rgb.bmp", pillow(rgb, "RGB", "BMP"), "RGB", rgb),
        _sample("rgba.bmp", _masked_bmp(rgba), "RGBA", rgba),
        _sample("la.jp2", _j2k(noise(2)), "LA", noise(2)),
        _sample("rgba16.jp2", _j2k(noise(4, 65535)), "RGBA;16", noise(4, 65535), largest=65535),
        _sample("rgb12.jp2", _j2k(twelve, bitspersample=12), "RGB;16", twelve, largest=4095),
        _sample("plain.pbm", b"P1 # c\n" + _plain(bilevel < 1), "1", bilevel * 255),
        _sample("plain.pgm", b"P2\n" + _plain(grey[..., 0], "\n255"), "L", grey),
        _sample("l.jp2", _j2k(grey), "L", grey),
        *(_narrow_j2k(bits, channels) for bits in (1, 2, 4) for channels in (1, 2, 3, 4)),
        _masked_j2k(),
        _palette_j2k(4),
        _palette_j2k(8),
        _ink("cmyk.jp2", _j2k(noise(4), colorspace=imagecodecs.JPEG2K.CLRSPC.CMYK), noise(4)),
        _sample("la16.jp2", _j2k(noise(2, 65535)), "LA;16", noise(2, 65535), largest=65535),
        _sample("l.bmp", pillow(grey, "L", "BMP"), "L", grey),
        *(_narrow_pnm(largest, channels) for largest in (15, 100) for channels in (1, 3)),
        _sample("rgb.jp2", _j2k(rgb), "RGB", rgb),
        _sample("rgba.jp2", _j2k(rgba), "RGBA", rgba),
        _sample("l16.jp2", _j2k(deep1), "L;16", deep1, largest=65535),
        _sample("rgb16.j2k", _j2k(deep3, codecformat="j2k"), "RGB;16", deep3, largest=65535),
        _sample("bilevel.pbm", encoded(Image.fromarray(bilevel), "PPM"), "1", bilevel * 255),
        _sample("l.pgm", pillow(grey, "L", "PPM"), "L", grey),
        _sample("rgb.ppm", pillow(rgb, "RGB", "PPM"), "RGB", rgb),
        _sample("l16.pgm", b"P5\n" + size + _big(deep1), "L;16", deep1, largest=65535),
        _sample("rgb16.ppm", b"P6\n" + size + _big(deep3), "RGB;16", deep3, largest=65535),
        _sample("plain.ppm", plain.encode(), "RGB;16", twelve, largest=4095),
    ]


def _plain(values: Array, largest: str = "") -> bytes:
    """(H, W) as decimal numbers behind their size."""
    rows = "\n".join(" ".join(str(int(value)) for value in row) for row in values)
    return f"{WIDTH} {HEIGHT}{largest}\n{rows}\n".encode()


def _masked_bmp(array: Array) -> bytes:
    """A BMP with masks for four channels (BITMAPV4HEADER): Pillow writes none with alpha."""
    pixels = array[::-1, :, [2, 1, 0, 3]].tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, WIDTH, HEIGHT, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    head += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 122) + head + pixels


def _big(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder(">")).tobytes()


def _j2k(array: Array, **options: Any) -> bytes:
    squeezed = array[..., 0].copy() if array.shape[2] == 1 else array
    return bytes(imagecodecs.jpeg2k_encode(squeezed, level=0, reversible=True, **options))


def _narrow_j2k(bits: int, channels: int) -> Sample:
    largest = (1 << bits) - 1
    array, mode = noise(channels, largest), {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    data = _j2k(array, bitspersample=bits)
    return _sample(f"{mode.lower()}{bits}.jp2", data, mode, array, largest=largest)


def _masked_j2k() -> Sample:
    """RGB of 8 bits with a mask of one: the header says that 127 and 128 of 8 bits are 0 and 1."""
    mask = noise(1, 1)
    stored = np.concatenate([noise(3), mask + 127], -1).astype(np.uint8)
    data = bytearray(_j2k(stored, codecformat="j2k"))
    data[data.index(b"\xff\x51") + 40 + 3 * 3] = 0
    alpha = mask[..., 0] * 255
    return Sample("masked.j2k", bytes(data), "RGBA", 8, 3, noise(3), alpha, 255, True)


def _palette_j2k(bits: int) -> Sample:
    """A JP2 whose one component is looked up in a table (T.800, I.5.3.4, I.5.3.5)."""
    index = noise(1, (1 << bits) - 1)
    data = _j2k(index, bitspersample=bits)
    head = data.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", data, head)
    inner = data[head + 8 : head + size - 4] + struct.pack(">I", 16)  # colr: sRGB
    colours = struct.pack(">HB3B", 1 << bits, 3, 7, 7, 7) + table(bits).tobytes()
    inner += _box(b"pclr", colours)
    inner += _box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, column) for column in range(3)))
    data = data[:head] + _box(b"jp2h", inner) + data[head + size :]
    return _sample(f"p{bits}.jp2", data, "P", table(bits)[index[..., 0]])


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _narrow_pnm(largest: int, channels: int) -> Sample:
    """A PGM or PPM with a maxval below 255."""
    array, kind = noise(channels, largest), 5 if channels == 1 else 6
    data = f"P{kind}\n{WIDTH} {HEIGHT}\n{largest}\n".encode() + array.tobytes()
    mode, suffix = ("L", "pgm") if channels == 1 else ("RGB", "ppm")
    return _sample(f"{mode.lower()}-{largest}.{suffix}", data, mode, array, largest=largest)


def multiplied(straight: Array) -> Array:
    """(H, W, 4) uint8 with its alpha multiplied in."""
    colours = np.rint(straight[..., :3] * (straight[..., 3:] / 255))
    return np.concatenate([colours, straight[..., 3:]], -1).astype(np.uint8)


def _phones() -> list[Sample]:
    rgb, rgba = smooth(3), smooth(4)
    ten = smooth(3, 1023)
    avif10 = bytes(imagecodecs.avif_encode(ten, level=90, bitspersample=10))
    return [
        _sample("rgb.avif", pillow(rgb, "RGB", "AVIF", quality=90), "RGB", None),
        _sample("rgba.avif", pillow(rgba, "RGBA", "AVIF", quality=90), "RGBA", None),
        _sample("l.avif", pillow(smooth(1), "L", "AVIF", subsampling="4:0:0"), "L", None),
        _sample("rgb10.avif", avif10, "RGB;16", None, largest=1023),
        *(
            _sample(
                f"{mode.lower()}{bits}.avif",
                _deep_avif(channels, bits),
                f"{mode};16",
                None,
                largest=(1 << bits) - 1,
            )
            for mode, channels in (("L", 1), ("RGBA", 4))
            for bits in (10, 12)
        ),
        _sample("rgb12.avif", _deep_avif(3, 12), "RGB;16", None, largest=4095),
        _sample(
            "rgba10.heic", heic(smooth(4, 1023) << 6, "RGBA;16"), "RGBA;16", None, largest=1023
        ),
        _sample("l10.heic", heic(smooth(1, 1023) << 6, "L;16"), "L;16", None, largest=1023),
        _sample("rgb.heic", heic(rgb, "RGB", quality=90), "RGB", None),
        _sample("rgba.heic", heic(rgba, "RGBA", quality=90), "RGBA", None),
        _sample("multiplied.heic", heic(multiplied(rgba), "RGBa", quality=-1), "RGBA", None),
        _sample("l.heic", heic(smooth(1), "L", quality=90), "L", None),
        _sample("rgb10.heic", heic(ten << 6, "RGB;16", quality=90), "RGB;16", None, largest=1023),
    ]


def _deep_avif(channels: int, bits: int) -> bytes:
    array = smooth(channels, (1 << bits) - 1)
    array = array[..., 0] if channels == 1 else array
    return bytes(imagecodecs.avif_encode(array, level=90, bitspersample=bits))


@cache
def corpus() -> dict[str, Sample]:
    """Every sample by its name."""
    samples = [*_png(), *_jpeg_webp(), *_tiff(), *_others(), *_phones()]
    return {sample.name: sample for sample in samples}


# --- several pictures in one file -----------------------------------------------------------


@cache
def animated() -> dict[str, bytes]:
    """Files with three frames or pages of different colours."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "green", "blue")]
    first, rest = frames[0], frames[1:]
    more: dict[str, Any] = {"save_all": True, "append_images": rest}
    return {
        "animated.png": encoded(first, "PNG", duration=100, **more),
        "animated.webp": encoded(first, "WEBP", duration=100, lossless=True, **more),
        "animated.avif": encoded(first, "AVIF", duration=100, **more),
        "pages.tif": encoded(first, "TIFF", **more),
    }


def with_preview() -> bytes:
    """A TIFF of one picture and, as a second page, a reduced copy of it."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(noise(3), photometric="rgb", metadata=None)
        writer.write(noise(3)[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    return out.getvalue()


# --- metadata -------------------------------------------------------------------------------

MAKER_NOTE = b"MAKER\0note that must keep its bytes"
IPTC = b"\x1c\x02\x78\x00\x09a caption\x1c\x02\x19\x00\x04bird"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
    ' rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    ' xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"'
    ' tiff:Orientation="6" exif:PixelXDimension="37" exif:GPSLatitude="47,22.5N"'
    ' dc:format="image/jpeg"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()


def thumbnail() -> bytes:
    """A JPEG of 16 x 10 px."""
    return encoded(Image.new("RGB", (16, 10), "purple"), "JPEG", quality=75)


def exif_block(orientation: int = 6, order: str = "<", note: bytes = MAKER_NOTE) -> bytes:
    """A block as a camera writes it: orientation, size, maker note, GPS, thumbnail."""
    ascii_, undefined, rational = 2, 7, 5
    make, preview = b"Camera & Co\0", thumbnail()
    ifd0 = [
        (0x010F, ascii_, len(make), make),
        (0x0112, 3, 1, orientation),
        (0x011A, rational, 1, struct.pack(order + "II", 300, 1)),
        (0x011B, rational, 1, struct.pack(order + "II", 300, 1)),
        (0x0128, 3, 1, 2),
        (0x8769, 4, 1, "exif"),
        (0x8825, 4, 1, "gps"),
    ]
    exif = [
        (0x829A, rational, 1, struct.pack(order + "II", 1, 125)),
        (0x927C, undefined, len(note), note),
        (0xA002, 3, 1, WIDTH),
        (0xA003, 3, 1, HEIGHT),
    ]
    degrees = struct.pack(order + "6I", 47, 1, 22, 1, 30, 1)
    gps = [(1, ascii_, 2, b"N\0"), (2, rational, 3, degrees)]
    ifd1 = [(0x0103, 3, 1, 6), (0x0201, 4, 1, "thumbnail"), (0x0202, 4, 1, len(preview))]
    return _laid_out({"ifd0": ifd0, "exif": exif, "gps": gps, "ifd1": ifd1}, preview, order)


def canon_exif(orientation: int = 6, order: str = "<") -> bytes:
    """As a Canon writes it: its maker note is a directory with offsets from the block's start.

    With an interoperability directory, and texts in it that lie behind the note's own entries.
    """
    ascii_, undefined, rational = 2, 7, 5
    image_type, owner = b"IMG:EOS DIGITAL JPEG\0\0", b"An exacting owner\0"
    note = bytes(2 + 12 * 2 + 4 + len(image_type) + len(owner)).replace(b"\0", b"\xa5")
    preview, make, model = thumbnail(), b"Canon\0", b"Canon EOS 5D\0"
    ifd0 = [
        (0x010F, ascii_, len(make), make),
        (0x0110, ascii_, len(model), model),
        (0x0112, 3, 1, orientation),
        (0x011A, rational, 1, struct.pack(order + "II", 300, 1)),
        (0x011B, rational, 1, struct.pack(order + "II", 300, 1)),
        (0x0128, 3, 1, 2),
        (0x0132, ascii_, 20, b"2021:06:07 08:09:10\0"),
        (0x8298, ascii_, 12, b"(c) Somebody"),
        (0x8769, 4, 1, "exif"),
        (0x8825, 4, 1, "gps"),
    ]
    exif = [
        (0x829A, rational, 1, struct.pack(order + "II", 1, 125)),
        (0x8827, 3, 1, 400),
        (0x9003, ascii_, 20, b"2021:06:07 08:09:10\0"),
        (0x927C, undefined, len(note), note),
        (0x9286, undefined, 16, b"ASCII\0\0\0a remark"),
        (0xA001, 3, 1, 1),
        (0xA002, 4, 1, WIDTH),
        (0xA003, 4, 1, HEIGHT),
        (0xA005, 4, 1, "interop"),
    ]
    degrees = struct.pack(order + "6I", 47, 1, 22, 1, 30, 1)
    gps = [(1, ascii_, 2, b"N\0"), (2, rational, 3, degrees)]
    interop = [(1, ascii_, 4, b"R98\0"), (2, undefined, 4, b"0100")]
    ifd1 = [(0x0103, 3, 1, 6), (0x0201, 4, 1, "thumbnail"), (0x0202, 4, 1, len(preview))]
    directories = {"ifd0": ifd0, "exif": exif, "interop": interop, "gps": gps, "ifd1": ifd1}
    block = _laid_out(directories, preview, order)
    place = block.index(note)
    texts = place + 2 + 12 * 2 + 4
    canon = struct.pack(order + "H", 2)
    canon += struct.pack(order + "HHII", 6, ascii_, len(image_type), texts)
    canon += struct.pack(order + "HHII", 9, ascii_, len(owner), texts + len(image_type))
    canon += bytes(4) + image_type + owner
    return block[:place] + canon + block[place + len(note) :]


def _laid_out(directories: dict[str, list[Any]], preview: bytes, order: str) -> bytes:
    """Directories one after the other, then their values, then the thumbnail."""
    places, place = {}, 8
    for name, entries in directories.items():
        places[name] = place
        place += 2 + 12 * len(entries) + 4
    values = b""
    outside = [e[3] for es in directories.values() for e in es if isinstance(e[3], bytes)]
    places["thumbnail"] = place + sum(len(value) for value in outside if len(value) > 4)
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for name, entries in directories.items():
        block += struct.pack(order + "H", len(entries))
        for tag, kind, count, value in entries:
            block += struct.pack(order + "HHI", tag, kind, count)
            if isinstance(value, bytes) and len(value) > 4:
                block += struct.pack(order + "I", place + len(values))
                values += value
            elif isinstance(value, bytes):
                block += value.ljust(4, b"\0")
            else:
                number = places[value] if isinstance(value, str) else value
                block += struct.pack(
                    order + ("I" if kind == 4 else "HH"), *([number] if kind == 4 else [number, 0])
                )
        block += struct.pack(order + "I", places["ifd1"] if name == "ifd0" else 0)
    return block + values + preview


def wide_profile() -> bytes:
    """An RGB profile wider than sRGB: Display P3's primaries (SMPTE EG 432-1), gamma 2.2."""
    primaries = [0.680, 0.320, 0.265, 0.690, 0.150, 0.060]
    white = [0.3127, 0.3290, 1.0]
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, gamma=2.2))


PLACES = {
    "display-p3": (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    "prophoto": (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001),
    "rec2020": (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
}
"""x and y of white, red, green and blue (SMPTE EG 432-1, ISO 22028-2, BT.2020)."""

GAMMAS = {"display-p3": None, "prophoto": 1.8, "rec2020": 2.4}


@cache
def rgb_profile(name: str) -> bytes:
    """A profile as cameras and editors give pictures: Adobe's of version 2, the others of 4."""
    if name == "adobe-rgb":
        return bytes(imagecodecs.cms_profile("adobergb"))
    x = np.linspace(0, 1, 4096)
    srgb = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)
    white, primaries = [*PLACES[name][:2], 1.0], list(PLACES[name][2:])
    gamma = GAMMAS[name]
    curve = srgb if gamma is None else None
    return bytes(
        imagecodecs.cms_profile(
            "rgb", whitepoint=white, primaries=primaries, gamma=gamma, transferfunction=curve
        )
    )


def colours(largest: int) -> Array:
    """(27, 27, 3): a cube of 9 x 9 x 9 colours, the corners among them."""
    ramp = np.rint(np.linspace(0, largest, 9))
    cube = np.stack(np.meshgrid(ramp, ramp, ramp), -1).reshape(27, 27, 3)
    return cube.astype(np.uint8 if largest < 256 else np.uint16)


@cache
def grey_profile(gamma: float = 1.8) -> bytes:
    """A grey profile."""
    return bytes(imagecodecs.cms_profile("gray", gamma=gamma))


def cmyk_profile() -> bytes:
    """A CMYK profile of 16 nodes (ICC.1:2010, 10.8): ink takes away; black ink is greenish grey.

    Corners differ from the naive conversion, so a test can tell whether it was used.
    """
    nodes = bytearray()
    for node in range(16):
        c, m, y, k = (node >> 3) & 1, (node >> 2) & 1, (node >> 1) & 1, node & 1
        lightness = 100 - 25 * c - 40 * m - 8 * y - 60 * k
        a, b = -30 * c + 60 * m - 5 * y - 20 * k, -40 * c - 5 * m + 80 * y
        nodes += bytes(
            [
                max(0, round(lightness * 2.55)),
                128 + max(-128, min(127, a)),
                128 + max(-128, min(127, b)),
            ]
        )
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + bytes(nodes) + ramp * 3
    return _icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _icc(kind: bytes, space: bytes, connection: bytes, tables: dict[bytes, bytes]) -> bytes:
    """A profile of version 2.4 with ``tables`` (ICC.1:2001-04)."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": text, b"wtpt": white, **tables}
    offset = 128 + 4 + 12 * len(tags)
    listed, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        data = value + bytes(-len(value) % 4)
        listed += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, connection)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + listed + body


@cache
def lut_profile(*, back: bool = True) -> bytes:
    """An RGB profile of tables alone (ICC.1:2001-04, 6.5.7), as scanners have; ``back`` to it too.

    Gamma 1.8 and Adobe RGB's primaries, so that the two tables are each other's inverse.
    """
    to_xyz = np.array(
        [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
    )
    corners = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)])
    ramp = np.linspace(0, 1, 4096)
    forth = _lut16(np.eye(3), ramp**1.8, corners @ to_xyz.T / 2 * 65536 / 65535, ramp)
    if not back:
        return _icc(b"scnr", b"RGB ", b"XYZ ", {b"A2B0": forth})
    # XYZ of 1 is 32768: its halves are put right by the matrix.
    inverse = np.linalg.inv(to_xyz)
    again = _lut16(inverse, ramp * 65535 / 32768, corners, ramp ** (1 / 1.8))
    return _icc(b"mntr", b"RGB ", b"XYZ ", {b"A2B0": forth, b"B2A0": again})


def _lut16(matrix: Array, before: Array, nodes: Array, after: Array) -> bytes:
    """An mft2 table: a matrix, a curve, 2 x 2 x 2 ``nodes``, a curve."""
    numbers = [
        np.rint(np.clip(part, 0, 1) * 65535).astype(">u2").tobytes()
        for part in (np.tile(before, 3), nodes, np.tile(after, 3))
    ]
    head = b"mft2\0\0\0\0" + bytes([3, 3, 2, 0])
    head += struct.pack(">9i", *np.rint(matrix * 65536).astype(int).ravel().tolist())
    return head + struct.pack(">2H", len(before), len(after)) + b"".join(numbers)


def photograph(
    format: str = "JPEG",
    *,
    icc: bytes | None = None,
    orientation: int = 6,
    mode: str = "RGB",
    exif: bytes | None = None,
    **options: Any,
) -> bytes:
    """A picture with every kind of metadata that Pillow can put into ``format``."""
    image = Image.fromarray(smooth(3)).convert(mode)
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options["pnginfo"] = info
    elif format == "HEIF":  # no XMP: the encoder would turn the picture by its orientation
        pillow_heif.register_heif_opener()
    elif format == "JPEG":
        block = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
        block += b"\0" * (len(IPTC) % 2)
        options |= {"extra": b"\xff\xed" + struct.pack(">H", len(block) + 2) + block, "xmp": XMP}
    else:
        options.setdefault("xmp", XMP)
    if icc:
        options["icc_profile"] = icc
    block = b"Exif\0\0" + (exif or exif_block(orientation))
    return encoded(image, format, exif=block, dpi=(300, 300), **options)
