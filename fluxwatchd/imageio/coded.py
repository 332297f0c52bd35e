"""Colour that a file names by numbers (ITU-T H.273: nclx, cICP) -> a profile."""

from __future__ import annotations

from functools import cache

from fluxwatchd.imageio import colour

SRGB, LINEAR = 13, 8
UNKNOWN = 2
HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}
GAMMAS = {4: 2.2, 5: 2.8, LINEAR: 1.0}
LIKE_SRGB = frozenset({1, 6, 14, 15, SRGB, UNKNOWN})
"""Transfer curves for which screens use sRGB's: BT.709's and BT.601's are those of cameras."""

PRIMARIES = {
    1: (0.3127, 0.3290, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
"""x and y of white, red, green and blue (H.273, table 2)."""


def known(primaries: int, transfer: int) -> bool:
    """Whether ``profile`` knows what these numbers mean."""
    curves = LIKE_SRGB | GAMMAS.keys()
    return (primaries in PRIMARIES or primaries == UNKNOWN) and transfer in curves


@cache
def profile(primaries: int, transfer: int) -> bytes | None:
    """The RGB profile that known numbers amount to; None for sRGB."""
    if primaries in (1, UNKNOWN) and transfer in LIKE_SRGB:
        return None
    places = PRIMARIES.get(primaries, PRIMARIES[1])
    return colour.profile(gamma=GAMMAS.get(transfer), white=places[:2], primaries=places[2:])
