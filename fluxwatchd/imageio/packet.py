"""An XMP packet as bytes with named places, so that a property can change and the rest stay."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from xml.parsers import expat

MOST_PIECES = 200_000
"""Elements and attributes; a packet with more is no photograph's."""

DEEPEST = 500
"""Elements in one another."""

LARGEST = 64 << 20
"""bytes; a packet that is longer is not looked at."""

TAG = re.compile(rb"<[^\s/>]+")
ATTRIBUTE = re.compile(rb"""(\s+)([^\s=/>]+)\s*=\s*("[^"]*"|'[^']*')""")


class BrokenXmp(ValueError):
    """The packet is no XML in UTF-8, or none that a photograph has; nobody could mend it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """An element or an attribute. Places are offsets in the packet's bytes.

    ``space`` and ``name`` are its namespace and local name, whatever its prefix. It lies at
    ``start``..``end`` (an attribute with the blank before it); its value, which for an element is
    what is between its tags, at ``value_start``..``value_end``. ``leaf`` says that an element
    holds no other, and is True for an attribute.
    """

    space: str
    name: str
    start: int
    end: int
    value_start: int
    value_end: int
    leaf: bool


class Packet:
    """A packet, parsed once. Raises BrokenXmp, also for a DOCTYPE, whose entities could swell."""

    def __init__(self, xmp: bytes) -> None:
        self.data = xmp.strip(b"\0 \t\r\n")
        if len(self.data) > LARGEST:
            raise BrokenXmp(f"it has {len(self.data)} bytes")
        self.pieces: list[Piece] = []
        self._open: list[tuple[str, int, int, int]] = []
        parser = expat.ParserCreate("UTF-8", " ")
        parser.ordered_attributes = True
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.StartElementHandler = lambda name, given: self._begin(
            name, given, parser.CurrentByteIndex
        )
        parser.EndElementHandler = lambda name: self._finish(name, parser.CurrentByteIndex)
        try:
            self.data.decode("utf-8")
            parser.Parse(self.data, True)
        except (expat.ExpatError, UnicodeDecodeError) as error:
            raise BrokenXmp(str(error)) from error

    def _begin(self, name: str, given: list[str], start: int) -> None:
        """An opening tag at ``start``; ``given`` is names and values in turn, xmlns left out."""
        tag = TAG.match(self.data, start)
        place, names = tag.end() if tag else start, iter(given[::2])
        while match := ATTRIBUTE.match(self.data, place):
            place = match.end()
            if not (match[2] == b"xmlns" or match[2].startswith(b"xmlns:")):
                span, value = (match.start(), place), (match.start(3) + 1, place - 1)
                self._add(next(names), span, value, leaf=True)
        end = self.data.index(b">", place) + 1
        if len(self._open) >= DEEPEST:
            raise BrokenXmp("its elements are nested too deep")
        self._open.append((name, start, end, len(self.pieces)))

    def _finish(self, name: str, place: int) -> None:
        """A closing tag at ``place``, or the end of an element that is one tag."""
        _, start, inside, before = self._open.pop()
        if self.data[inside - 2 : inside] == b"/>":
            self._add(name, (start, inside), (inside, inside), leaf=True)
            return
        span = start, self.data.index(b">", place) + 1
        self._add(name, span, (inside, place), leaf=len(self.pieces) == before)

    def _add(self, name: str, span: tuple[int, int], value: tuple[int, int], leaf: bool) -> None:
        if len(self.pieces) >= MOST_PIECES:
            raise BrokenXmp(f"it has more than {MOST_PIECES} properties")
        space, _, local = name.rpartition(" ")
        self.pieces.append(Piece(space, local, *span, *value, leaf))

    def find(self, space: str, name: str) -> Piece | None:
        """The first piece of that name."""
        return next((p for p in self.pieces if (p.space, p.name) == (space, name)), None)

    def changed(self, edits: Iterable[tuple[int, int, bytes]]) -> bytes:
        """The bytes with every (start, end, new) put in; of two that overlap the outer one is."""
        out, place = [], 0
        for start, end, new in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
            if start >= place:
                out += [self.data[place:start], new]
                place = end
        return b"".join([*out, self.data[place:]])


def _refuse_doctype(*_: object) -> None:
    raise BrokenXmp("it has a DOCTYPE")
