"""PNG out, in strips: filtered by libpng, compressed by zlib as one stream, never joined."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fluxwatchd.imageio.containers import PNG_MAGIC

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""By the number of channels (PNG 3rd edition, table 12)."""


def write(
    target: BinaryIO,
    shape: tuple[int, int, int],
    strips: Iterable[NDArray[Any]],
    *,
    deep: bool,
    chunks: Iterable[bytes],
) -> None:
    """A PNG of ``shape`` (H, W, C): 8 bits a channel, or 16 (``deep``).

    ``strips`` are (h, W, C) uint8 or uint16 from top to bottom; ``chunks`` go in before the pixels.
    Paeth's filter and run lengths alone: an upscaled 4096 x 4096 px photograph takes half a second
    of one core; zlib's level 6, Pillow's default, nine times that for a file as large.
    """
    height, width, channels = shape
    depth = 16 if deep else 8
    header = struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPES[channels], 0, 0, 0)
    target.write(PNG_MAGIC + chunk(b"IHDR", header))
    for one in chunks:
        target.write(one)
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    for lines in _filtered(strips):
        if packed := packer.compress(lines):
            target.write(chunk(b"IDAT", packed))
    target.write(chunk(b"IDAT", packer.flush()))
    target.write(chunk(b"IEND", b""))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk: length, type, data, CRC."""
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def _filtered(strips: Iterable[NDArray[Any]]) -> Iterator[memoryview]:
    """Scanlines of every strip after Paeth's filter, each behind its filter's number.

    libpng does it: it writes the strip, below the row before it, as a PNG whose deflate stream
    only stores; of that row's own scanline nothing is kept.
    """
    import imagecodecs

    png = imagecodecs.PNG
    above: NDArray[Any] | None = None
    for strip in strips:
        rows = strip if above is None else np.concatenate([above, strip])
        stored = imagecodecs.png_encode(
            np.ascontiguousarray(rows[..., 0] if rows.shape[2] == 1 else rows),
            level=0,
            filter=png.FILTER.PAETH,
        )
        lines = memoryview(zlib.decompress(b"".join(_pixel_data(stored))))
        yield lines if above is None else lines[1 + strip[0].nbytes :]
        above = strip[-1:]


def _pixel_data(file: bytes | bytearray) -> Iterator[memoryview]:
    """The content of every IDAT chunk."""
    data, place = memoryview(file), len(PNG_MAGIC)
    while place < len(file):
        (size,) = struct.unpack_from(">I", data, place)
        if bytes(data[place + 4 : place + 8]) == b"IDAT":
            yield data[place + 8 : place + 8 + size]
        place += 12 + size
