"""Resizing as a differentiable product of matrices: torch's own has no Lanczos and no boxes.

A picture is (N, C, H, W), float. A box is (top, left, bottom, right) in pixels of the picture that
it cuts, fractions allowed. A grid is (rows, columns).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[float, float, float, float]
Grid = tuple[int, int]


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _windowed_sinc(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


@dataclass(frozen=True, slots=True)
class Kernel:
    """A resampling filter: its values and how many source pixels it reaches to either side."""

    values: Callable[[Tensor], Tensor]
    support: int


BICUBIC = Kernel(_cubic, 2)
"""Keys' cubic with a = -1/2 (Keys 1981); what Pillow's BICUBIC is."""
LANCZOS = Kernel(_windowed_sinc, 3)
"""What Pillow's LANCZOS is."""


def resample(
    picture: Tensor,
    size: Grid,
    *,
    box: Box | None = None,
    kernel: Kernel = BICUBIC,
    reflect: bool = True,
) -> Tensor:
    """Cut ``box`` (default: everything) out of (N, C, H, W) and resize it to ``size``.

    Shrinking widens the kernel as Pillow does, so nothing aliases. Beyond the picture's edge it is
    reflected, or with ``reflect=False`` left out of the weighted mean, as Pillow does. Separable,
    differentiable, float32, never clamped.
    """
    height, width = picture.shape[-2:]
    top, left, bottom, right = box or (0.0, 0.0, float(height), float(width))
    rows, first_row = weights(height, (top, bottom), size[0], kernel, reflect)
    columns, first_column = weights(width, (left, right), size[1], kernel, reflect)
    last_row, last_column = first_row + rows.shape[1], first_column + columns.shape[1]
    part = picture[..., first_row:last_row, first_column:last_column].float()
    return rows.to(part) @ part @ columns.to(part).T


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # kept tensors must serve guidance's gradient too
def weights(
    length: int, span: tuple[float, float], size: int, kernel: Kernel, reflect: bool
) -> tuple[Tensor, int]:
    """Resize one axis: (size, used) weights of pixels ``first .. first + used - 1``, and first."""
    low, high = span
    step = (high - low) / size
    stretch = max(step, 1.0)
    reach = kernel.support * stretch
    centres = low + (torch.arange(size, dtype=torch.float64) + 0.5) * step
    places = torch.arange(math.floor(low - reach), math.ceil(high + reach))
    table = kernel.values((places + 0.5 - centres[:, None]) / stretch)
    if reflect:
        # mirror about the edge pixels' outer borders, as often as needed
        places = places % (2 * length)
        places = torch.where(places < length, places, 2 * length - 1 - places)
    else:
        inside = (places >= 0) & (places < length)
        table, places = table[:, inside], places[inside]
    table = table / table.sum(1, keepdim=True)
    first, last = int(places.min()), int(places.max())
    folded = torch.zeros(size, last - first + 1, dtype=torch.float64)
    folded.index_add_(1, places - first, table)
    return folded.float(), first
