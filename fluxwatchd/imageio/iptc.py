"""IPTC's IIM record in the places where files keep it (Adobe's image resources, ImageMagick)."""

from __future__ import annotations

import struct

RESOURCE = 0x0404
PATHS = range(2000, 2998)
"""Numbers of the image resources that are paths (Photoshop File Formats Specification)."""

FIRST = b"Photoshop 3.0\0"
MARKER = b"\x1c"


def record(resources: bytes) -> bytes | None:
    """The IIM record inside Photoshop's image resources, or ``resources`` itself if it is one."""
    data = resources.removeprefix(FIRST)
    while data[:4] == b"8BIM" and len(data) >= 12:
        start = 6 + (data[6] + 2) // 2 * 2
        size = int.from_bytes(data[start : start + 4], "big")
        if int.from_bytes(data[4:6], "big") == RESOURCE:
            return data[start + 4 : start + 4 + size]
        data = data[start + 4 + size + size % 2 :]
    return data if data[:1] == MARKER else None


def resources(iim: bytes) -> bytes:
    """An image resource block with the record, as JPEG's APP13 and ImageMagick's profile have."""
    block = b"8BIM" + struct.pack(">H", RESOURCE) + b"\0\0" + struct.pack(">I", len(iim)) + iim
    return FIRST + block + b"\0" * (len(iim) % 2)


def raw_profile(iim: bytes) -> str:
    """The text that ImageMagick and exiftool keep under "Raw profile type iptc" in a PNG."""
    digits = resources(iim).removeprefix(FIRST).hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return f"\niptc\n{len(digits) // 2:8d}\n{lines}\n"
