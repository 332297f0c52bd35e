"""Back-projection: make a result shrink to its source again (Irani and Peleg 1991)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fluxwatchd.config import Profile
from fluxwatchd.engine.resize import clip, in_strips, resize
from fluxwatchd.variants import Variant

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Anchor:
    """How firmly a result is tied to its source: ``rounds``, and ``amount`` of the difference."""

    rounds: int
    amount: float


FIRM = Anchor(rounds=2, amount=1.0)
LOOSE = Anchor(rounds=1, amount=0.5)
"""For lossy sources, whose artefacts are not to be made anew. Both were chosen by PSNR and GMSD."""

LOSSY = frozenset({"JPEG", "MPO", "WEBP", "AVIF", "HEIF"})


def anchor_for(variant: Variant, profile: Profile, kind: str) -> Anchor | None:
    """The anchor of a picture whose file is of ``kind``, in Pillow's words.

    Only for models that see the source, whose task is to be true to it, and part of the colour
    lock: ``color_fix = "off"`` leaves it out. On plain img2img it would hide what the model did.
    """
    if not variant.uses_sources or profile.color_fix == "off":
        return None
    return LOOSE if kind in LOSSY else FIRM


def enlarges(result: Floats, source: Floats) -> bool:
    """Whether ``result`` is the larger in both directions; else the source would replace it."""
    height, width = source.shape[:2]
    return bool(result.shape[0] > height and result.shape[1] > width)


def project_back(result: Floats, source: Floats, *, rounds: int = 1, amount: float = 1.0) -> Floats:
    """``result`` (H, W, C) with what is missing from it, at the size of ``source`` (h, w, C).

    Shrinks the result, compares with the source, enlarges the difference and adds ``amount`` of
    it; ``rounds`` times. Both float32; ``result`` is changed in place and returned, clipped to
    0..1, or to what the source spans beyond that.
    Nothing is done where the result does not enlarge the source.

    It trusts every pixel of the source, its coding artefacts too: use less for lossy sources.
    """
    if not enlarges(result, source):
        return result
    height, width = result.shape[:2]
    small = (source.shape[1], source.shape[0])
    how = Image.Resampling.BICUBIC
    bounds = min(0.0, float(source.min())), max(1.0, float(source.max()))
    for _ in range(rounds):
        for channel in range(result.shape[2]):
            plane = result[..., channel]
            missing = source[..., channel] - resize(plane, small, how)
            for columns, part in in_strips(missing, (width, height), how):
                plane[:, columns] += amount * part
        clip(result, *bounds)
    return result
