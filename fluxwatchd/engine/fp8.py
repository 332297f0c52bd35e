"""Linear layers whose weights are held as float8 and made wide again for every use.

Half the memory of bfloat16 for a relative error of some 3 % a weight (three bits of mantissa); a
scale for every row keeps it as small as float8 allows.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
BLOCKS = "transformer_blocks"
"""Part of the path of every repeated block, of both kinds, in diffusers' FLUX."""


class Float8Linear(nn.Module):
    """A frozen linear layer: ``weight`` (out, in) in float8, ``scale`` (out, 1) float32.

    The wide copy lives only while the layer runs (under gradient checkpointing while its block
    does), so the weights take half the memory.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = narrow(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., in) -> (..., out) in ``x``'s dtype."""
        scale = cast(Tensor, self.scale)
        weight = (cast(Tensor, self.weight).to(x.dtype) * scale.to(x.dtype)).detach()
        return F.linear(x, weight, self.bias)


def narrow(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> the same in float8, and what its rows were divided by, (out, 1) float32."""
    wide = weight.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(1e-12) / torch.finfo(FLOAT8).max
    return (wide / scale).to(FLOAT8), scale


def squeeze(transformer: nn.Module) -> int:
    """Hold the blocks' linear layers, but not a LoRA's, as float8; how many there were."""
    found = [
        (parent, name, child)
        for path, parent in transformer.named_modules()
        if BLOCKS in path
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and "lora_" not in path
    ]
    for parent, name, child in found:
        setattr(parent, name, Float8Linear(child))
    return len(found)
