"""How far apart two batches of pictures are to a DINO encoder: as a loss, and as it is judged.

Drift to the source: the result shrunk to the source's size by Lanczos, a cell CELL px. Drift to the
truth: at full size, in windows of WINDOW cells with MARGIN around them. Both as `bench dino`
measures them; the loss looks at several layers, as guidance does, and passes a gradient.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxwatchd.engine import dino
from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.resample import LANCZOS, Grid
from fluxwatchd.training.data import resize

WINDOW, MARGIN = 16, 2
"""Cells a side of a window, and of what is around it, where detail is compared."""


def apart(encoder: DinoEncoder, shown: Tensor, wanted: Tensor, grid: Grid, edge: int = 0) -> Tensor:
    """1 - mean cosine of the patches' features, mean over layers: (N,), with a gradient.

    ``edge``: cells at every side that are seen and not compared.
    """
    inner = (slice(edge, grid[0] - edge), slice(edge, grid[1] - edge))
    with torch.no_grad():
        there = encoder.layer_features(wanted, grid)
    here = encoder.layer_features(shown, grid)
    alike = [F.cosine_similarity(a, b, dim=-1) for a, b in zip(here, there, strict=True)]
    return 1 - torch.stack([layer[:, *inner].mean((1, 2)) for layer in alike]).mean(0)


def from_source(encoder: DinoEncoder, result: Tensor, source: Tensor) -> Tensor:
    """How far ``result``, shrunk, is from ``source``: (N,), with a gradient."""
    height, width = source.shape[-2:]
    grid = max(1, round(height / encoder.patch)), max(1, round(width / encoder.patch))
    size = grid[0] * encoder.patch, grid[1] * encoder.patch
    small = resize(result, (height, width), LANCZOS).clamp(0, 1)
    if size != (height, width):
        small, source = (resize(picture, size).clamp(0, 1) for picture in (small, source))
    return apart(encoder, small, source, grid)


def from_truth(encoder: DinoEncoder, result: Tensor, truth: Tensor, windows: int) -> Tensor:
    """How far ``result`` is from ``truth`` of its size, in windows anywhere: (N,), with a gradient.

    The windows lie at the same ``windows`` places in all pictures, chosen anew at every call.
    """
    patch = encoder.patch
    height, width = result.shape[-2:]
    rows, columns = (min(side // patch, WINDOW + 2 * MARGIN) for side in (height, width))
    edge = MARGIN if min(rows, columns) > 2 * MARGIN else 0
    places = [
        (_corner(height - rows * patch), _corner(width - columns * patch)) for _ in range(windows)
    ]

    def views(picture: Tensor) -> Tensor:
        return torch.cat(
            [picture[..., y : y + rows * patch, x : x + columns * patch] for y, x in places]
        )

    each = apart(encoder, views(result).clamp(0, 1), views(truth), (rows, columns), edge)
    return each.view(windows, -1).mean(0)


def _corner(room: int) -> int:
    return int(torch.randint(room + 1, ()))


# --- as it is judged ------------------------------------------------------------------------


@torch.no_grad()
def drift_from_source(encoder: DinoEncoder, result: Tensor, source: Tensor) -> Tensor:
    """``Judge.to_source`` of every picture: (N,)."""
    height, width = source.shape[-2:]
    small = resize(result, (height, width), LANCZOS).clamp(0, 1)
    return dino.drift(encoder.features(small), encoder.features(source))


@torch.no_grad()
def drift_from_truth(encoder: DinoEncoder, result: Tensor, truth: Tensor) -> Tensor:
    """``Judge.to_truth`` of every picture with sides of whole cells: (N,)."""
    sums = [
        dino.drift_map(a, b).sum((1, 2))
        for a, b in zip(_details(encoder, result), _details(encoder, truth), strict=True)
    ]
    height, width = (side // encoder.patch for side in result.shape[-2:])
    return torch.stack(sums).sum(0) / (height * width)


def _details(encoder: DinoEncoder, pictures: Tensor) -> Iterator[dino.Features]:
    """Features of all pictures at full size, one window after the other."""
    patch = encoder.patch
    height, width = (side // patch * patch for side in pictures.shape[-2:])
    for top in range(0, height, WINDOW * patch):
        for left in range(0, width, WINDOW * patch):
            bottom, right = (min(a + WINDOW * patch, b) for a, b in ((top, height), (left, width)))
            tile = ((bottom - top) // patch, (right - left) // patch)
            view = dino.window((top, left, bottom, right), tile, MARGIN, height, width)
            up, before, down, after = (round(place) for place in view.box)
            seen = encoder.features(pictures[..., up:down, before:after], view.grid)
            inner = seen.patches[:, view.top : view.top + tile[0], view.left : view.left + tile[1]]
            yield dino.Features(inner, seen.whole)
