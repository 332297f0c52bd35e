"""Drift as a DINO encoder sees it: how far a result strays from its source and from the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fluxwatchd.bench.metrics import Pixels
from fluxwatchd.engine import resize
from fluxwatchd.engine.dino import DinoEncoder, Features, drift, encode_picture, encode_tiles
from fluxwatchd.engine.resample import Box
from fluxwatchd.engine.sight import as_tensor
from fluxwatchd.imageio import Floats

MOST_CELLS = 16
"""DINO cells a side of a window in which fine detail is compared, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """An encoder that looks at pictures (H, W, 3) uint8 and tells their distances, 0..2.

    It need not be the encoder that steers: a second one cannot be pleased by accident.
    """

    encoder: DinoEncoder

    def to_source(self, result: Pixels, source: Pixels) -> float:
        """Drift of ``result``, shrunk to the source's size, as the record has it."""
        height, width = source.shape[:2]
        small = np.clip(resize.lanczos(_floats(result), (width, height)), 0, 1)
        seen, reference = (
            encode_picture(self.encoder, as_tensor(floats, self.encoder.device))
            for floats in (small, _floats(source))
        )
        return float(drift(seen, reference)[0])

    def detail(self, pixels: Pixels) -> Features:
        """Features of ``pixels`` at full size: a patch of the encoder is a patch of the picture."""
        picture = as_tensor(_floats(pixels), self.encoder.device)
        height, width = pixels.shape[:2]
        boxes, cells = windows(height, width, self.encoder.patch)
        return encode_tiles(self.encoder, picture, boxes, cells)

    def to_truth(self, result: Pixels, truth: Features) -> float:
        """Mean drift of a result from ``truth`` (see detail) of the same size."""
        return float(drift(self.detail(result), truth).mean())


def _floats(pixels: Pixels) -> Floats:
    return pixels.astype(np.float32) / np.float32(255)


def windows(height: int, width: int, patch: int) -> tuple[tuple[Box, ...], tuple[int, int]]:
    """Even windows that cover a picture side by side, and the cells (rows, columns) of each.

    A window has MOST_CELLS cells a side at most, a cell as near to ``patch`` px as can be.
    """
    down, rows = _divide(height, patch)
    across, columns = _divide(width, patch)
    boxes = tuple(
        (
            height * i / down,
            width * j / across,
            height * (i + 1) / down,
            width * (j + 1) / across,
        )
        for i in range(down)
        for j in range(across)
    )
    return boxes, (rows, columns)


def _divide(length: int, patch: int) -> tuple[int, int]:
    """How many windows a side is cut into, and the cells of each."""
    count = math.ceil(length / (MOST_CELLS * patch))
    return count, max(1, round(length / count / patch))
