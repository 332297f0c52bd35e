"""What libjpeg only warns of: Pillow fills damaged parts with grey and says nothing."""

from __future__ import annotations

import io
import re

from fluxwatchd.imageio.containers import END_OF_IMAGE, jpeg_segments
from fluxwatchd.imageio.faults import damaged

DAMAGE = "Corrupt JPEG data"
AT_THE_END = re.compile(r": (\d+) extraneous bytes before marker 0xd9")
PADDING = 32
"""bytes before the end, all the same, that are taken for padding: some cameras round files up."""

START_OF_SCAN, COMMENT, ADOBE = 0xDA, 0xFE, 0xEE
APPLICATION = range(0xE0, 0xF0)
COLOURS = {1: "GRAY", 3: "GRAY", 4: "CMYK"}


def refuse_damaged(data: bytes, components: int, name: str) -> None:
    """Raise InputRejected (transient) where libjpeg-turbo warns that coded data are corrupt.

    Decoded at an eighth of the size, from the coefficients' means: a few ms for a megapixel. What
    a damaged file decodes to without a warning nobody can tell from a whole one: JPEG has no
    checksum. ``components`` is 1, 3 or 4; faults that are no warnings are the decoder's to raise.
    """
    import simplejpeg

    bare, scan = _bare(data, name)
    try:
        simplejpeg.decode_jpeg(
            bare, COLOURS[components], min_height=1, min_width=1, min_factor=8, strict=True
        )
    except ValueError as error:
        if DAMAGE in str(error) and not _is_padding(str(error), bare, scan):
            raise damaged(name, error) from error


def _bare(data: bytes, name: str) -> tuple[bytes, int]:
    """The picture without metadata and junk between segments, and where its first scan begins.

    libjpeg tells of the first doubt alone: one about a colour profile would hide those that count.
    """
    parts, start = [data[:2]], 0
    for marker, begin, end in jpeg_segments(io.BytesIO(data), name):
        if marker == START_OF_SCAN:
            start = begin
        elif marker != COMMENT and (marker not in APPLICATION or marker == ADOBE):
            parts.append(data[begin:end])
    head = b"".join(parts)
    return head + data[start:], len(head)


def _is_padding(said: str, data: bytes, scan: int) -> bool:
    """Whether libjpeg speaks of a few bytes too many at the end, all alike: no coded data are."""
    found = AT_THE_END.search(said)
    if found is None or int(found[1]) > PADDING:
        return False
    end = data.find(END_OF_IMAGE, scan)
    return len(set(data[end - int(found[1]) : end])) == 1
