"""Colour that alpha was multiplied into, as it was before (TIFF 6.0, section 18; MIAF's prem)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES_AT_ONCE = 1 << 20


def straight(colour: NDArray[Any], alpha: NDArray[Any], largest: int) -> NDArray[Any]:
    """``colour`` (H, W, C) divided by ``alpha`` (H, W), both 0..``largest``; some rows at a time.

    What is brighter than its alpha allows, as nonsense or rounding is, becomes ``largest``.
    """
    out = np.empty_like(colour)
    step = max(1, SAMPLES_AT_ONCE // max(1, colour[0].size))
    for top in range(0, len(colour), step):
        rows = slice(top, top + step)
        whole = colour[rows].astype(np.float64) * largest / np.maximum(alpha[rows], 1)[..., None]
        out[rows] = np.rint(np.minimum(whole, largest))
    return out
