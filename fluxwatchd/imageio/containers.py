"""PNG's chunks and JPEG's segments, walked before a decoder sees the file: ends, order, number."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from fluxwatchd.imageio.faults import damaged, rejected

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
MOST_CHUNKS = 1_000_000
"""A PNG with a chunk for every byte of pixels may have as many; Pillow takes 10 us for each."""

MOST_BESIDE = 10_000
"""Chunks of a PNG beside its pixels, and segments of a JPEG before them."""

MOST_JUNK = 1 << 16
"""bytes between two segments of a JPEG; libjpeg and Pillow pass over them one by one."""

START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
BLOCK, PIECE = 1 << 20, 1 << 14
WHOLE = (0, 0, 1, 1)
ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""The passes of an interlaced PNG: first column and row, steps across and down."""
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
BESIDE = frozenset({*TEXTS, b"eXIf", b"pHYs", b"tIME", b"bKGD", b"hIST", b"sPLT"})
"""Chunks of a PNG without which its pixels and their colours are the same."""
CHECKED = 1 << 24
"""bytes; the checksum of a longer chunk is left to the decoder."""


@dataclass(frozen=True, slots=True)
class Png:
    """What a walk over a PNG's chunks finds.

    ``exif`` is the eXIf chunk, wherever it lies; ``late``: texts lie behind the pixels; ``bits`` a
    px are stored; ``coded`` is cICP's (primaries, transfer), numbers of ITU-T H.273; ``broken`` are
    the BESIDE chunks whose checksum is wrong, by name and place of the data and size.
    """

    exif: bytes | None
    late: bool
    bits: int
    coded: tuple[int, int] | None
    broken: tuple[tuple[bytes, int, int], ...] = ()


def walk_png(file: BinaryIO, name: str) -> Png:
    """Check that a PNG's chunks reach IEND, which may come after more metadata.

    Raises InputRejected.
    """
    exif, coded, bits, pixels_seen, late, beside = None, None, 8, False, False, 0
    broken = []
    for number, (kind, place, size) in enumerate(png_chunks(file)):
        pixels_seen |= kind == b"IDAT"
        beside += kind != b"IDAT"
        late |= pixels_seen and kind in TEXTS
        if beside > MOST_BESIDE or number > MOST_CHUNKS:
            raise rejected(name, "more chunks than a picture has", hint=SAVE_ANEW)
        if kind in BESIDE and size <= CHECKED and not _whole(file, kind, place, size):
            broken.append((kind, place, size))
            continue
        file.seek(place)
        if kind == b"IHDR" and size == 13:
            depth, colour = file.read(10)[8:]
            bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
        elif kind == b"eXIf":
            exif = file.read(size)
        elif kind == b"cICP" and size == 4:
            coded = (file.read(1)[0], file.read(1)[0])
        elif kind == b"IEND":
            return Png(exif, late, bits, coded, tuple(broken))
    raise damaged(name, "the end is missing")


def _whole(file: BinaryIO, kind: bytes, place: int, size: int) -> bool:
    """Whether a chunk's checksum is right (PNG 3rd edition, 5.5)."""
    file.seek(place)
    data = file.read(size + 4)
    return zlib.crc32(data[:size], zlib.crc32(kind)) == int.from_bytes(data[size:], "big")


def without(file: BinaryIO, chunks: Iterable[tuple[bytes, int, int]]) -> BinaryIO:
    """A PNG in memory that lacks these chunks."""
    parts, start = [], 0
    for _, place, size in chunks:
        file.seek(start)
        parts.append(file.read(place - 8 - start))
        start = place + size + 4
    file.seek(start)
    return io.BytesIO(b"".join([*parts, file.read()]))


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(type, offset of the data, its length) of every whole chunk (PNG 3rd edition, 5.3)."""
    length = file.seek(0, os.SEEK_END)
    place = len(PNG_MAGIC)
    while place + 12 <= length:
        file.seek(place)
        size, kind = struct.unpack(">I4s", file.read(8))
        if place + 12 + size > length:
            return
        yield kind, place + 8, size
        place += 12 + size


def refuse_short_png(file: BinaryIO, name: str) -> None:
    """Raise InputRejected where a PNG's stream ends before its last row.

    Pillow leaves the rows black that are missing. zlib's own faults are raised as they are.
    """
    want, inflate, there = 0, zlib.decompressobj(), 0
    for kind, place, size in png_chunks(file):
        file.seek(place)
        if kind == b"IHDR":
            want = _filtered_bytes(*struct.unpack(">IIBBBBB", file.read(13)))
        elif kind == b"IDAT":
            left = size
            while there < want and not inflate.eof and (part := file.read(min(PIECE, left))):
                left -= len(part)
                there += _inflated(inflate, part)
        if kind == b"IEND" or there >= want > 0:
            break
    if there < want:
        raise damaged(name, f"{there} of {want} bytes of its pixels are there")


def _inflated(inflate: Any, part: bytes) -> int:
    """How many bytes some more of a zlib stream amounts to; they are not kept."""
    count = 0
    while part:
        count += len(inflate.decompress(part, BLOCK))
        part = inflate.unconsumed_tail
    return count


def _filtered_bytes(
    width: int, height: int, depth: int, colour: int, _c: int, _f: int, interlaced: int
) -> int:
    """Bytes of all rows, each with its filter's byte before it (PNG 3rd edition, 7.2, 8.1)."""
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    total = 0
    for left, top, across, down in ADAM7 if interlaced else (WHOLE,):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        total += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    return total


def jpeg_scans(file: BinaryIO, name: str) -> int:
    """How many scans a JPEG has, the end-of-image marker behind them (ITU-T T.81, B.1.1.3).

    Raises InputRejected where that is missing: libjpeg fills what is missing with grey, or with
    what zeros of a preallocated file decode to.
    """
    place = first_scan(file, name)
    file.seek(place)
    scans, last = 0, b""
    while block := file.read(BLOCK):
        # In coded data 0xff is always followed by a zero, so these two are markers.
        coded, ending, _ = (last + block).partition(END_OF_IMAGE)
        scans += coded.count(START_OF_SCAN)
        if ending:
            return scans
        last = block[-1:]
    raise damaged(name, "the end is missing")


def first_scan(file: BinaryIO, name: str) -> int:
    """Where a JPEG's first scan begins: behind its segments, and the junk between them."""
    *_, (_, place, _) = jpeg_segments(file, name)
    return place


def jpeg_segments(file: BinaryIO, name: str) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of every segment of a JPEG, the first scan's header being the last."""
    place = 2
    for _ in range(MOST_BESIDE):
        file.seek(place)
        head = file.read(4)
        if len(head) < 4:
            raise damaged(name, "the end is missing")
        if head[0] != 0xFF or head[1] in (0, 0xFF):
            place = _behind_junk(file, place, name)
            continue
        begin, place = place, place + 2 + int.from_bytes(head[2:], "big")
        yield head[1], begin, place
        if head[:2] == START_OF_SCAN:
            return
    raise rejected(name, "more segments than a picture has", hint=SAVE_ANEW)


def _behind_junk(file: BinaryIO, place: int, name: str) -> int:
    """The next marker; any number of 0xff may stand before it."""
    file.seek(place)
    junk = file.read(MOST_JUNK)
    found = re.search(rb"\xff[\x01-\xfe]", junk)
    if found is None and len(junk) == MOST_JUNK:
        raise damaged(name, "no picture where its header ends")
    if found is None:
        raise damaged(name, "the end is missing")
    return place + found.start()


SAVE_ANEW = "Open it in a picture editor and save it anew."
