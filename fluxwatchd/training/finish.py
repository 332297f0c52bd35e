"""What the pipeline does to a model's pixels, with a gradient: colour lock and back-projection.

The engine works on single pictures in strips; this works on batches (N, 3, H, W), float32, 0..1,
with H and W multiples of color.BLOCK, and gives the same pixels.
"""

import torch.nn.functional as F
from torch import Tensor

from fluxwatchd.engine.backprojection import FIRM, Anchor
from fluxwatchd.engine.color import BLOCK
from fluxwatchd.training.data import resize


def lock(result: Tensor, base: Tensor) -> Tensor:
    """``result`` with the low band of ``base``: ``color.lock`` as ``wavelet``."""
    means = F.pad(F.avg_pool2d(base - result, BLOCK), (1, 1, 1, 1), mode="replicate")
    down = (means[..., :-2, :] + 2 * means[..., 1:-1, :] + means[..., 2:, :]) / 4
    smooth = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    return result + resize(smooth, (result.shape[-2], result.shape[-1]))


def project_back(result: Tensor, source: Tensor, anchor: Anchor = FIRM) -> Tensor:
    """``result`` with what is missing from it at the size of ``source``, clamped."""
    size, small = ((t.shape[-2], t.shape[-1]) for t in (result, source))
    for _ in range(anchor.rounds):
        missing = source - resize(result, small)
        result = (result + anchor.amount * resize(missing, size)).clamp(0, 1)
    return result
