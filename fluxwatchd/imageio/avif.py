"""What an AVIF file says of its pixels: depth, colour by number, and how many it really codes."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from fluxwatchd.imageio.boxes import boxes, content

MONOCHROME, TWELVE, DEEP = 0x10, 0x20, 0x40
SEQUENCE_HEADER, TEMPORAL_DELIMITER = 1, 2
HEAD = 256
"""bytes of an item in which its sequence header lies."""


def flags(head: bytes) -> tuple[int, ...]:
    """Of every AV1 configuration: DEEP is more than 8 bits, TWELVE then 12, MONOCHROME no colour.

    Alpha and thumbnails have their own. (AV1 Codec ISO Media File Format Binding, 2.3.3.)
    """
    return tuple(match[1][0] for match in re.finditer(rb"av1C\x81.(.)", head, re.DOTALL))


def nclx(head: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) of the first nclx colour box (ISO 14496-12, 12.1.5)."""
    place = head.find(b"colrnclx")
    if not 0 < place <= len(head) - 12:
        return None
    primaries, transfer = struct.unpack_from(">HH", head, place + 8)
    return primaries, transfer


def coded_pixels(file: BinaryIO) -> int:
    """px in the picture that an AVIF's primary item really codes.

    libavif enlarges a picture to the size that the file claims, whatever that is. 0 where the
    primary item cannot be told, or is a grid of others.
    """
    end = file.seek(0, os.SEEK_END)
    for kind, start, stop in boxes(file, 0, end):
        if kind == b"meta":
            inner = {name: (first, last) for name, first, last in boxes(file, start + 4, stop)}
            if b"iloc" not in inner or b"pitm" not in inner:
                return 0
            embedded, _ = inner.get(b"idat", (0, 0))
            named = content(file, *inner[b"pitm"])
            primary = int.from_bytes(named[4 : 6 if named[:1] == b"\0" else 8], "big")
            place = dict(_places(content(file, *inner[b"iloc"]), embedded)).get(primary)
            if place is None:
                return 0
            width, height = _size(content(file, place, place + HEAD))
            return width * height
    return 0


def _places(iloc: bytes, embedded: int) -> Iterator[tuple[int, int]]:
    """The numbers of the items, and where they begin (ISO 14496-12, 8.11.3).

    ``embedded`` is where the idat box does.
    """
    fields = _Bytes(iloc)
    version = fields.number(4) >> 24
    sizes = fields.number(2)
    offset_size, length_size, base_size, index_size = (
        sizes >> shift & 15 for shift in (12, 8, 4, 0)
    )
    wide = 4 if version == 2 else 2
    for _ in range(fields.number(wide)):
        item = fields.number(wide)
        method = fields.number(2) & 15 if version in (1, 2) else 0
        fields.number(2)
        base = fields.number(base_size) + (embedded if method == 1 else 0)
        offsets = []
        for _ in range(fields.number(2)):
            fields.number(index_size if version in (1, 2) else 0)
            offsets.append(fields.number(offset_size))
            fields.number(length_size)
        if offsets and method in (0, 1):
            yield item, base + offsets[0]


@dataclass(slots=True)
class _Bytes:
    """Big-endian numbers, one after the other. Raises ValueError behind the end."""

    data: bytes
    place: int = 0

    def number(self, size: int) -> int:
        self.place += size
        if self.place > len(self.data):
            raise ValueError("a box ends too early")
        return int.from_bytes(self.data[self.place - size : self.place], "big")


def _size(item: bytes) -> tuple[int, int]:
    """(width, height) that an item's AV1 sequence header states; (0, 0) where it has none."""
    place = 0
    while place + 2 <= len(item):
        kind, has_size = item[place] >> 3 & 15, item[place] & 2
        place += 2 if item[place] & 4 else 1
        size = 0
        for byte in range(8 if has_size else 0):  # leb128 (AV1 specification, 4.10.5)
            size |= (item[place : place + 1] or b"\0")[0] % 128 << 7 * byte
            place += 1
            if item[place - 1 : place] < b"\x80":
                break
        if kind == SEQUENCE_HEADER:
            return _sequence(_Bits(item[place:]))
        if kind != TEMPORAL_DELIMITER:
            return 0, 0
        place += size
    return 0, 0


class _Bits:
    """Bits, the most significant first; zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next ``count`` as a number."""
        self.left -= count
        shifted = self.value >> self.left if self.left >= 0 else 0
        return shifted & ((1 << count) - 1)


def _sequence(bits: _Bits) -> tuple[int, int]:
    """The largest frame of a sequence header (AV1 specification, 5.5.1)."""
    bits.take(3 + 1)  # profile, still picture
    if bits.take(1):  # reduced header
        bits.take(5)
    else:
        _operating_points(bits)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(across) + 1, bits.take(down) + 1


def _operating_points(bits: _Bits) -> None:
    """Pass over timing and operating points (AV1 specification, 5.5.1, 5.5.3, 5.5.4)."""
    delay = 0
    if bits.take(1):  # timing info
        bits.take(32 + 32)
        if bits.take(1):  # ticks a picture, uvlc
            zeros = 0
            while zeros < 32 and bits.left > 0 and not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):  # decoder model
            delay = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    display = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay and bits.take(1):
            bits.take(2 * delay + 1)
        if display and bits.take(1):
            bits.take(4)
