"""XMP longer than one JPEG segment: joined when read, divided again when written.

ISO 16684-3 (XMP Specification Part 3), 1.1.3.1: the main packet names the MD5 of the rest, which
lies in further APP1 segments.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from fluxwatchd.imageio.packet import LARGEST, BrokenXmp, Packet, Piece
from fluxwatchd.imageio.xmp import RDF

SIGNATURE = b"http://ns.adobe.com/xmp/extension/\0"
NOTE = "http://ns.adobe.com/xmp/note/"
NAME = "HasExtendedXMP"
HEAD = len(SIGNATURE) + 32 + 8
"""bytes before the data: signature, MD5 in hexadecimal, whole length, offset."""

SEGMENT = 65_000
"""bytes of data in one segment that is written; 65,458 would fit."""


def joined(xmp: bytes, segments: Iterable[bytes]) -> bytes:
    """The main packet with what ``segments`` (their bytes behind the marker and length) add to it.

    Raises BrokenXmp where the rest is missing or is no XMP.
    """
    packet = Packet(xmp)
    note = packet.find(NOTE, NAME)
    if note is None:
        return xmp
    digest = packet.data[note.value_start : note.value_end].strip()
    rest = Packet(_collected(digest, segments))
    rdf, more = _rdf(packet), _rdf(rest)
    inner = rest.data[more.value_start : more.value_end]
    whole = packet.changed([(note.start, note.end, b""), (rdf.value_end, rdf.value_end, inner)])
    return Packet(whole).data


def _collected(digest: bytes, segments: Iterable[bytes]) -> bytes:
    """The bytes whose MD5 is ``digest`` from their segments. Raises BrokenXmp."""
    parts = {}
    for segment in segments:
        guid = segment[len(SIGNATURE) : len(SIGNATURE) + 32]
        if segment.startswith(SIGNATURE) and len(segment) > HEAD and guid == digest:
            parts[struct.unpack_from(">I", segment, HEAD - 4)[0]] = segment[HEAD:]
    data = b"".join(parts[offset] for offset in sorted(parts))
    if len(data) > LARGEST or hashlib.md5(data, usedforsecurity=False).hexdigest() != (
        digest.decode("latin-1").lower()
    ):
        raise BrokenXmp("its extension is not whole")
    return data


def divided(xmp: bytes, most: int) -> tuple[bytes, tuple[bytes, ...]]:
    """A packet of at most ``most`` bytes, and segments (see ``joined``) with the rest.

    The longest descriptions go into the segments. Raises BrokenXmp where that cannot be done.
    """
    if len(xmp) <= most:
        return xmp, ()
    packet = Packet(xmp)
    data, rdf = packet.data, _rdf(packet)
    root = max(packet.pieces, key=lambda piece: piece.end - piece.start)
    note = (
        f'<rdf:Description rdf:about="" xmlns:rdf="{RDF}" xmlns:xmpNote="{NOTE}"'
        f' xmpNote:{NAME}="{"0" * 32}"/>\n'
    ).encode()
    before, after = data[: rdf.value_start], data[rdf.value_end :]
    room = most - len(before) - len(after) - len(note)
    if room < 0:
        raise BrokenXmp("it is longer than a JPEG segment and cannot be divided")
    near: list[bytes] = []
    far: list[bytes] = []
    for piece in sorted(_children(packet, rdf), key=lambda piece: piece.end - piece.start):
        text = data[piece.start : piece.end]
        if len(text) <= room and not far:
            near.append(text)
            room -= len(text)
        else:
            far.append(text)
    rest = data[root.start : rdf.value_start] + b"".join(far) + data[rdf.value_end : root.end]
    digest = hashlib.md5(rest, usedforsecurity=False).hexdigest().upper().encode()
    main = b"".join([before, *near, note.replace(b"0" * 32, digest), after])
    return main, tuple(
        SIGNATURE + digest + struct.pack(">II", len(rest), at) + rest[at : at + SEGMENT]
        for at in range(0, len(rest), SEGMENT)
    )


def _rdf(packet: Packet) -> Piece:
    """The element that holds the properties. Raises BrokenXmp."""
    rdf = packet.find(RDF, "RDF")
    if rdf is None or rdf.value_end == rdf.end:
        raise BrokenXmp("it has no rdf:RDF")
    return rdf


def _children(packet: Packet, parent: Piece) -> list[Piece]:
    """The elements that stand right in ``parent``."""
    inside = [p for p in packet.pieces if parent.value_start <= p.start < parent.value_end]
    children: list[Piece] = []
    for piece in sorted(inside, key=lambda piece: (piece.start, -piece.end)):
        if not children or piece.start >= children[-1].end:
            children.append(piece)
    return children
