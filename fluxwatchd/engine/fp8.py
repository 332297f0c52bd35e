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
LEAST_CAPABILITY = (8, 9)
"""The oldest GPUs that multiply in float8: Ada and Hopper."""
UNIT = 16
"""Both sides of a float8 weight must be multiples of it to be multiplied with."""
BLOCKS = "transformer_blocks"
"""Part of the path of every repeated block, of both kinds, in diffusers' FLUX."""


class Float8Linear(nn.Module):
    """A frozen linear layer: ``weight`` (out, in) in float8, ``scale`` (out, 1) float32.

    With ``products`` the layer multiplies in float8 (see :func:`multiplies`); its input is made
    float8 for that, with a scale for every row. Else the weights are made wide while it runs (under
    gradient checkpointing while its block does). Either way they take half the memory.
    """

    def __init__(self, linear: nn.Linear, *, products: bool = False) -> None:
        super().__init__()
        weight, scale = narrow(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.products = products and not (self.in_features % UNIT or self.out_features % UNIT)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., in) -> (..., out) in ``x``'s dtype."""
        weight, scale = cast(Tensor, self.weight), cast(Tensor, self.scale)
        if self.products:
            return product(x, weight, scale, self.bias)
        wide = (weight.to(x.dtype) * scale.to(x.dtype)).detach()
        return F.linear(x, wide, self.bias)


def multiplies(device: torch.device) -> bool:
    """Whether ``device`` has matrix products in float8: from compute capability 8.9."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` (..., in) times ``weight`` (out, in) in float8 with ``scale`` (out, 1), and ``bias``.

    The product that torchao's Float8DynamicActivationFloat8Weight with PerRow comes down to, but
    on plain tensors, which can be streamed and narrowed again in the middle of a picture.
    """
    rows = x.reshape(-1, x.shape[-1])
    small, level = narrow(rows)
    out = torch._scaled_mm(
        small,
        weight.t(),
        scale_a=level,
        scale_b=scale.t(),
        bias=bias,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )
    return out.reshape(*x.shape[:-1], weight.shape[0])


def narrow(wide: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, in) -> the same in float8, and what its rows were divided by, (rows, 1) float32."""
    wide = wide.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(1e-12) / torch.finfo(FLOAT8).max
    return (wide / scale).to(FLOAT8), scale


def squeeze(transformer: nn.Module, *, products: bool = False) -> int:
    """Hold the blocks' linear layers, but not a LoRA's, as float8; how many there were.

    ``products``: see :class:`Float8Linear`.
    """
    found = [
        (parent, name)
        for path, parent in transformer.named_modules()
        if BLOCKS in path
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and "lora_" not in path
    ]
    for parent, name in found:  # one is there twice at a time, not all
        setattr(parent, name, Float8Linear(getattr(parent, name), products=products))
    return len(found)
