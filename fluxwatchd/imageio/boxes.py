"""Boxes, of which JPEG 2000, AVIF and HEIC files are made (ISO 14496-12, 4.2; T.800, I.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

MOST_BOXES = 10_000
LARGEST = 1 << 25
"""bytes of a box beside the pixels; a longer one is passed over."""


def content(file: BinaryIO, start: int, stop: int) -> bytes:
    """The bytes from ``start`` to ``stop``; none where they are too many."""
    file.seek(start)
    return file.read(stop - start) if stop - start <= LARGEST else b""


def boxes(file: BinaryIO, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end of the content) of every whole box from ``place`` on."""
    for _ in range(MOST_BOXES):
        if place + 8 > end:
            return
        size, kind = struct.unpack(">I4s", content(file, place, place + 8))
        head = 8
        if size == 1 and place + 16 <= end:
            (size,), head = struct.unpack(">Q", content(file, place + 8, place + 16)), 16
        size = size or end - place  # 0 is "up to the end"
        if size < head or place + size > end:
            return
        yield kind, place + head, place + size
        place += size
