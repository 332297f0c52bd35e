"""EXIF changed in place: what is not touched keeps its bytes and offsets, maker notes among it.

The layout is TIFF's (TIFF 6.0, section 2) and the tags are those of CIPA DC-008 (Exif 2.32).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

ORIENTATION, EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x0112, 0x8769, 0x8825, 0xA005
WIDTH_TAGS, HEIGHT_TAGS = (0x0100, 0xA002), (0x0101, 0xA003)
RESOLUTIONS, RESOLUTION_UNIT = (0x011A, 0x011B), 0x0128
THUMB_OFFSET, THUMB_LENGTH = 0x0201, 0x0202
BYTE, SHORT, LONG, RATIONAL, UNDEFINED = 1, 3, 4, 5, 7
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
MAKER_NOTE = 0x927C
UNDEFINED_TAGS = frozenset(
    {0x8828, 0x9000, 0x9101, MAKER_NOTE, 0x9286, 0xA000, 0xA20C, 0xA300, 0xA301, 0xA302, 0xA40B}
)
"""OECF, versions, component layout, maker note, remark, and what sensors and scenes are."""
NOTE_HEADS = (0, 8, 12, 10, 6)
"""bytes before the directory of a maker note."""

MOST = (1 << 32) - 1
"""What a LONG, and either part of a RATIONAL, goes up to."""
MOST_ENTRIES = 1000
LARGEST = 64_000
"""bytes; a JPEG holds its EXIF in one segment of at most 65,533."""


class BrokenExif(ValueError):
    """The block does not parse; nobody could mend it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One 12-byte entry of a directory. ``place`` and ``value_place`` are offsets in the block."""

    tag: int
    kind: int
    count: int
    place: int
    value_place: int

    @property
    def size(self) -> int:
        """bytes of the value."""
        return TYPE_SIZES.get(self.kind, 1) * self.count

    @property
    def inline(self) -> bool:
        """Whether the value stands in the entry itself."""
        return self.size <= 4


class Block:
    """An EXIF block under change: a TIFF header, IFD0 (the picture), IFD1 (its thumbnail)."""

    def __init__(self, exif: bytes) -> None:
        self.data = bytearray(exif.removeprefix(b"Exif\0\0"))
        order = bytes(self.data[:2])
        if order not in (b"II", b"MM") or len(self.data) < 8:
            raise BrokenExif("no TIFF header")
        self.order = "<" if order == b"II" else ">"
        self.first = self.get("I", 4)

    def get(self, code: str, place: int) -> int:
        """The number of struct code ``code`` at ``place``; raises BrokenExif past the end."""
        try:
            return int(struct.unpack_from(self.order + code, self.data, place)[0])
        except struct.error as error:
            raise BrokenExif(f"offset {place} lies outside") from error

    def put(self, code: str, place: int, value: int) -> None:
        """Overwrite the number at ``place``."""
        struct.pack_into(self.order + code, self.data, place, value)

    def entries(self, ifd: int) -> Iterator[Entry]:
        """The entries of the directory at ``ifd``; raises BrokenExif where one points outside."""
        for place in self.places(ifd):
            yield self.entry(place)

    def entry(self, place: int) -> Entry:
        """The entry at ``place``; raises BrokenExif where it points outside."""
        tag, kind = self.get("H", place), self.get("H", place + 2)
        number = self.get("I", place + 4)
        size = TYPE_SIZES.get(kind, 1) * number
        value = place + 8 if size <= 4 else self.get("I", place + 8)
        if value + size > len(self.data):
            raise BrokenExif(f"tag {tag:#06x} points outside")
        return Entry(tag, kind, number, place, value)

    def find(self, ifd: int, tag: int) -> Entry | None:
        """The entry of ``tag`` in the directory at ``ifd``; the others may point where they will.

        Raises BrokenExif where this one points outside.
        """
        return next((self.entry(place) for place in self.places(ifd, tag)), None)

    def places(self, ifd: int, tag: int | None = None) -> Iterator[int]:
        """Where the entries of the directory at ``ifd`` lie, or those of ``tag``."""
        count = self.get("H", ifd)
        if count > MOST_ENTRIES:
            raise BrokenExif(f"{count} entries")
        for place in range(ifd + 2, ifd + 2 + 12 * count, 12):
            if tag is None or self.get("H", place) == tag:
                yield place

    def pointer(self, ifd: int, tag: int) -> int | None:
        """Where the sub-directory ``tag`` lies; None without one, as a pointer of 0 says too."""
        entry = self.find(ifd, tag)
        return (self.get("I", entry.value_place) or None) if entry else None

    def next_place(self, ifd: int) -> int:
        """Where the offset of the next directory stands."""
        return ifd + 2 + 12 * self.get("H", ifd)

    def number(self, entry: Entry) -> int:
        """The value of a single SHORT or LONG."""
        return self.get("H" if entry.kind == SHORT else "I", entry.value_place)

    def ratio(self, entry: Entry | None) -> float:
        """The value of a single RATIONAL; 0 where there is none."""
        if entry is None or (entry.kind, entry.count) != (RATIONAL, 1):
            return 0.0
        below = self.get("I", entry.value_place + 4)
        return self.get("I", entry.value_place) / below if below else 0.0

    def set_number(self, entry: Entry, value: int) -> None:
        """Overwrite a single SHORT or LONG; a SHORT too small for it becomes a LONG."""
        if entry.kind == SHORT and value > 0xFFFF:
            self.put("H", entry.place + 2, LONG)
            entry = Entry(entry.tag, LONG, entry.count, entry.place, entry.value_place)
        self.put("H" if entry.kind == SHORT else "I", entry.value_place, value)

    def wipe(self, ifd: int) -> None:
        """Zero a directory and its values; sub-directories of it are not followed."""
        for entry in list(self.entries(ifd)):
            self.data[entry.value_place : entry.value_place + entry.size] = bytes(entry.size)
        end = self.next_place(ifd) + 4
        self.data[ifd:end] = bytes(end - ifd)

    def remove(self, ifd: int, tag: int) -> None:
        """Take one entry out of a directory; the rest moves up."""
        entry = self.find(ifd, tag)
        if entry is None:
            return
        end = self.next_place(ifd) + 4
        rest = bytes(self.data[entry.place + 12 : end])
        self.data[entry.place : end] = rest + bytes(12)
        self.put("H", ifd, self.get("H", ifd) - 1)


def orientation(exif: bytes) -> int:
    """How the stored picture lies, 1 (upright) to 8; 1 where the block is broken or silent."""
    try:
        block = Block(exif)
        entry = block.find(block.first, ORIENTATION)
        value = block.number(entry) if entry else 1
    except BrokenExif:
        return 1
    return value if 1 <= value <= 8 else 1


def resolution(exif: bytes) -> tuple[float, float] | None:
    """(x, y) px per inch; None where the block is broken, silent, or names no unit."""
    try:
        block = Block(exif)
        unit = block.find(block.first, RESOLUTION_UNIT)
        per_inch = {None: 1.0, 2: 1.0, 3: 2.54}.get(block.number(unit) if unit else None)
        values = [block.ratio(block.find(block.first, tag)) for tag in RESOLUTIONS]
    except BrokenExif:
        return None
    if per_inch is None or min(values) <= 0:
        return None
    return values[0] * per_inch, values[1] * per_inch


def without_orientation(exif: bytes) -> bytes:
    """The block without the tag: for AVIF, where the container says how a picture lies."""
    block = Block(exif)
    block.remove(block.first, ORIENTATION)
    return bytes(block.data)


def mend(
    exif: bytes,
    *,
    width: int,
    height: int,
    dpi: tuple[float, float] | None,
    thumbnail: bytes | None,
    strip_gps: bool,
) -> bytes:
    """The block made true for a picture of ``width`` x ``height`` px, upright, of ``dpi``.

    ``thumbnail`` is a JPEG that takes the place of the old one, if there was one; None removes it.
    ``strip_gps`` takes the GPS directory out and zeroes what it held. Raises BrokenExif.
    """
    block = Block(relocate(exif, 0))  # every directory parses, or the block is not kept
    sub = block.pointer(block.first, EXIF_IFD)
    for ifd in (block.first, sub):
        for entry in list(block.entries(ifd)) if ifd else ():
            _mend_entry(block, entry, width, height, dpi)
    _mend_thumbnail(block, thumbnail)
    if strip_gps:
        gps = block.pointer(block.first, GPS_IFD)
        if gps is not None:
            block.wipe(gps)
            block.remove(block.first, GPS_IFD)
    return relocate(bytes(block.data), 0)  # in a damaged block a value may lie in a directory


def _mend_entry(
    block: Block, entry: Entry, width: int, height: int, dpi: tuple[float, float] | None
) -> None:
    """Overwrite one entry if it says something about size, orientation or resolution."""
    if entry.count == 1 and entry.kind in (SHORT, LONG):
        if entry.tag == ORIENTATION:
            block.set_number(entry, 1)
        elif entry.tag in WIDTH_TAGS:
            block.set_number(entry, width)
        elif entry.tag in HEIGHT_TAGS:
            block.set_number(entry, height)
        elif entry.tag == RESOLUTION_UNIT and dpi:
            block.set_number(entry, 2)
    elif (entry.kind, entry.count) == (RATIONAL, 1) and dpi and entry.tag in RESOLUTIONS:
        value = dpi[RESOLUTIONS.index(entry.tag)]
        below = 1000 if value < MOST // 1000 else 1
        block.put("I", entry.value_place, min(round(value * below), MOST))
        block.put("I", entry.value_place + 4, below)


def _mend_thumbnail(block: Block, thumbnail: bytes | None) -> None:
    """Put ``thumbnail`` where the old one was; unlink IFD1 where that cannot be done."""
    link = block.next_place(block.first)
    ifd = block.get("I", link)
    if ifd == 0:
        return
    offset, length = block.find(ifd, THUMB_OFFSET), block.find(ifd, THUMB_LENGTH)
    if offset and length:
        old, size = block.number(offset), block.number(length)
        if old + size > len(block.data):
            raise BrokenExif("the thumbnail lies outside")
        block.data[old : old + size] = bytes(size)
        if thumbnail and len(thumbnail) <= size:
            block.data[old : old + len(thumbnail)] = thumbnail
            block.set_number(length, len(thumbnail))
            return
        if thumbnail and len(block.data) + len(thumbnail) <= LARGEST:
            block.set_number(offset, len(block.data))
            block.set_number(length, len(thumbnail))
            block.data += thumbnail
            return
    block.wipe(ifd)
    block.put("I", link, 0)


def declare_undefined(block: Block) -> None:
    """Give values that are UNDEFINED by the standard this type back, where they are BYTE."""
    sub = block.pointer(block.first, EXIF_IFD)
    gps = block.pointer(block.first, GPS_IFD)
    interop = block.pointer(sub, INTEROP_IFD) if sub else None
    for ifd, tags in ((sub, UNDEFINED_TAGS), (gps, (0x1B, 0x1C)), (interop, (0x02,))):
        for entry in list(block.entries(ifd)) if ifd else ():
            if entry.tag in tags and entry.kind == BYTE:
                block.put("H", entry.place + 2, UNDEFINED)


def maker_note(block: Block) -> Entry | None:
    """The entry of the maker note."""
    sub = block.pointer(block.first, EXIF_IFD)
    return block.find(sub, MAKER_NOTE) if sub else None


def shift_note(block: Block, was: int, by: int) -> None:
    """Make a maker note true that stood at ``was`` and is to stand ``by`` bytes further on.

    Many makers' notes are a directory whose offsets count from the start of the EXIF block, behind
    a name (Canon has none, Sony and Panasonic 12 bytes, old Olympus 8). Where a note parses as one
    whose values all lie in the note itself, they are moved with it; other notes count from their
    own start and need nothing.
    """
    note = maker_note(block)
    if note is None:
        return
    for head in NOTE_HEADS:
        outside = _outside_values(block, note.value_place + head, (was, was + note.size))
        if outside:
            for place in outside:
                block.put("I", place, block.get("I", place) + by)
            _shift_footer(block, note, by)
            return


def _shift_footer(block: Block, note: Entry, by: int) -> None:
    """Mend the end of a Canon's note: a TIFF header that says where the note once stood."""
    place = note.value_place + note.size - 8
    header = b"II*\0" if block.order == "<" else b"MM\0*"
    if note.size > 8 and block.data[place : place + 4] == header:
        block.put("I", place + 4, block.get("I", place + 4) + by)


def _outside_values(block: Block, ifd: int, within: tuple[int, int]) -> list[int]:
    """Where a directory's offsets stand; none if it is no directory, or one points elsewhere."""
    places, room = [], within[1] - within[0]
    try:
        count = block.get("H", ifd)
        if not 0 < count <= min(MOST_ENTRIES, room // 12):
            return []
        for place in range(ifd + 2, ifd + 2 + 12 * count, 12):
            kind, size = block.get("H", place + 2), block.get("I", place + 4)
            size *= TYPE_SIZES.get(kind, 0)
            value = block.get("I", place + 8)
            if kind not in TYPE_SIZES or (size > 4 and not within[0] <= value <= within[1] - size):
                return []
            places += [place + 8] if size > 4 else []
    except BrokenExif:
        return []
    return places


def has_thumbnail(exif: bytes) -> bool:
    """Whether the block has a second directory, which holds the thumbnail."""
    try:
        block = Block(exif)
        return block.get("I", block.next_place(block.first)) != 0
    except BrokenExif:
        return False


def relocate(exif: bytes, base: int) -> bytes:
    """The block with every offset moved by ``base``, for standing that far into a TIFF file."""
    block = Block(exif)
    pending, seen = [block.first], set[int]()
    while pending:
        ifd = pending.pop()
        if ifd in seen:
            raise BrokenExif("a directory holds itself")
        seen.add(ifd)
        for entry in list(block.entries(ifd)):
            if entry.tag in (EXIF_IFD, GPS_IFD, INTEROP_IFD) and entry.inline:
                if inner := block.get("I", entry.value_place):  # 0 is none
                    pending.append(inner)
                    block.put("I", entry.value_place, inner + base)
            elif not entry.inline:
                block.put("I", entry.place + 8, entry.value_place + base)
    return bytes(block.data)
