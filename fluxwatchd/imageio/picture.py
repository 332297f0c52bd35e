"""What a picture is between file and file: float pixels, alpha, and what else the file carried."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


MOST_DPI = 100_000
"""px per inch; a file that says more, as damaged ones do, is taken to say nothing."""


def believable(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    """A resolution as floats; None where it is none, or nonsense."""
    if dpi is None or not all(0 < value <= MOST_DPI for value in dpi):
        return None
    return float(dpi[0]), float(dpi[1])


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file carries beside its pixels, kept as it was.

    ``icc`` is the colour profile the file had and will have again; None for sRGB by default and
    for CMYK, which leaves as RGB. ``exif`` starts with its TIFF header (``II*`` or ``MM``),
    ``xmp`` is a packet, ``iptc`` an IIM record. ``dpi`` is (x, y) per inch. ``text`` is PNG's
    keywords and texts, and a JPEG's comment under "Comment".
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture, upright.

    ``pixels`` (H, W, C) float32, C is 1 (grey) or 3 (RGB), sRGB's transfer curve, 0..1. Colours
    outside sRGB, which only a file with a wider profile has, lie outside 0..1 (about -0.7..1.3),
    the curve mirrored at 0, so that they can be written back. ``alpha`` (H, W) float32 in 0..1,
    not multiplied in, or None. ``depth`` is bits a channel, 8 or 16, as the file declares it.
    ``format`` is Pillow's name of the file's format; ``mode`` the file's own pixel layout, in
    Pillow's words, with ``;16`` where a channel has more than 8 bits. ``notes`` say what of the
    file is not in here, one sentence each.
    """

    pixels: Floats
    alpha: Floats | None = None
    depth: int = 8
    format: str = "PNG"
    mode: str = "RGB"
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """px."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """px."""
        return int(self.pixels.shape[0])

    @property
    def bounds(self) -> tuple[float, float]:
        """What pixels may be clipped to without losing this picture's colours; spans 0..1."""
        return min(0.0, float(self.pixels.min())), max(1.0, float(self.pixels.max()))


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its picture before it is decoded.

    ``width`` and ``height`` in px, upright (orientation applied). ``frames`` counts pictures,
    previews not among them. ``format``, ``mode`` and ``depth`` as in Picture.
    """

    width: int
    height: int
    frames: int
    format: str
    mode: str
    depth: int

    @property
    def pixels(self) -> int:
        """px in one frame."""
        return self.width * self.height
