"""Every text of a PNG, in the file's order; Pillow keeps the last of those with one keyword."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from fluxwatchd.imageio.containers import TEXTS, png_chunks


def texts(file: BinaryIO, longest: int) -> Iterator[tuple[str, str]]:
    """(keyword, text) of tEXt, zTXt and iTXt (PNG 3rd edition, 11.3.3).

    One that is damaged, or unpacks to more than ``longest`` bytes, is passed over.
    """
    for kind, place, size in png_chunks(file):
        if kind not in TEXTS:
            continue
        file.seek(place)
        keyword, _, rest = file.read(size).partition(b"\0")
        try:
            text = _text(kind, rest, longest)
        except (ValueError, zlib.error):
            continue
        yield keyword.decode("latin-1"), text


def _text(kind: bytes, rest: bytes, longest: int) -> str:
    """What stands behind the keyword. Raises ValueError, zlib.error."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(rest[1:], longest).decode("latin-1")
    packed, rest = rest[:1] == b"\1", rest[2:]
    _language, _, rest = rest.partition(b"\0")
    _translated, _, rest = rest.partition(b"\0")
    return (_inflated(rest, longest) if packed else rest).decode("utf-8")


def _inflated(data: bytes, longest: int) -> bytes:
    inflate = zlib.decompressobj()
    text = inflate.decompress(data, longest)
    if inflate.unconsumed_tail:
        raise ValueError("a text is too long")
    return text
