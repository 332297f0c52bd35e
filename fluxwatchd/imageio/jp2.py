"""What a JPEG 2000 file says of its samples, and what it carries beside them (ITU-T T.800)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from fluxwatchd.imageio import iptc
from fluxwatchd.imageio.boxes import boxes, content
from fluxwatchd.imageio.faults import damaged, rejected

MAGIC = b"\0\0\0\x0cjP  "
END_OF_CODESTREAM = b"\xff\xd9"
SIZES = b"\xff\x4f\xff\x51"
XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
EXIFS = (b"JpgTiffExif->JP2", bytes.fromhex("0537cdab9d0c4431a72afa561f2a113e"))
IPTCS = (
    bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"),
    bytes.fromhex("09a14e97c0b442e0bebf36df6f0ce36f"),
)
YCC = 18
SAVE_ANEW = "Save it anew as RGB or grey, with one depth for all channels."


@dataclass(slots=True)
class Beside:
    """``icc``, ``exif``, ``xmp`` and ``iptc`` as in Metadata; ``ycc``: the colours are sYCC."""

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    ycc: bool = False


def depths(head: bytes, ycc: bool, name: str) -> tuple[int, ...]:
    """Bits of every component, from the SIZ marker (A.5.1).

    Raises InputRejected for samples of a kind that the decoder does not turn into RGB.
    """
    place = head.find(SIZES)
    if place < 0:
        raise ValueError("no SIZ marker")
    (count,) = struct.unpack_from(">H", head, place + 40)
    sizes = head[place + 42 : place + 42 + 3 * min(count, 16) : 3]
    if not sizes:
        raise ValueError("no components")
    bits = [(size & 0x7F) + 1 for size in sizes]
    deep = max(bits) > 8 and (len(set(sizes)) > 1 or sizes[0] & 0x80)
    if deep or (ycc and set(bits) != {8}):
        raise rejected(
            name,
            f"a JPEG 2000 picture with channels of {bits} bits, in YCC, unlike or signed",
            hint=SAVE_ANEW,
        )
    if max(bits) > 16:
        raise rejected(name, f"{max(bits)} bits a channel", hint="Save it with 8 or 16 bits.")
    return tuple(bits)


def beside(file: BinaryIO) -> Beside:
    """The boxes of a JP2 file that are not pixels (I.5, I.7); a bare codestream has none."""
    found = Beside()
    end = file.seek(0, os.SEEK_END)
    if content(file, 0, len(MAGIC)) != MAGIC:
        return found
    for kind, start, stop in boxes(file, 0, end):
        if kind == b"jp2h":
            for inner, first, last in boxes(file, start, stop):
                if inner == b"colr":
                    _colour(content(file, first, last), found)
        elif kind == b"uuid":
            _uuid(content(file, start, stop), found)
    return found


def check_end(file: BinaryIO, name: str) -> None:
    """Refuse a picture whose codestream does not end as one does (T.800, A.4.4).

    OpenJPEG fills what is missing with grey.
    """
    end = file.seek(0, os.SEEK_END)
    if content(file, 0, len(MAGIC)) == MAGIC:
        streams = [stop for kind, _, stop in boxes(file, 0, end) if kind == b"jp2c"]
        end = streams[0] if streams else 0
    if end < 2 or content(file, end - 2, end) != END_OF_CODESTREAM:
        raise damaged(name, "the end is missing")


def _colour(box: bytes, found: Beside) -> None:
    """A colour specification: 1 is a number, 2 and 3 an ICC profile (I.5.3.3; T.801, M.11.7.3)."""
    if box[:1] in (b"\2", b"\3"):
        found.icc = box[3:]
    elif box[:1] == b"\1":
        found.ycc = int.from_bytes(box[3:7], "big") == YCC


def _uuid(box: bytes, found: Beside) -> None:
    """One of the kinds that exiftool, Photoshop and Kakadu write."""
    kind, data = box[:16], box[16:]
    if kind == XMP:
        found.xmp = data
    elif kind in EXIFS:
        found.exif = data.removeprefix(b"Exif\0\0")
    elif kind in IPTCS:
        found.iptc = iptc.record(data)
