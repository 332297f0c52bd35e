"""A LoRA beside its layers, of which more or less may count from one evaluation to the next.

A DINO adapter's LoRA was trained together with its tokens, so it counts as much as they do, and not
at all where there are none. Files that ``lora`` names are added to the weights instead (lora.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxwatchd.errors import ConfigError

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


class LowRank(nn.Module):
    """A linear layer and ``amount`` (0 to 1) times up @ down; at 0 the layer itself, to the bit."""

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor, device: torch.device) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("down", down)
        self.register_buffer("up", up)
        # a tensor, because a compiled block would be compiled again for every other number; no
        # buffer, because it stays on the device where the weights are streamed
        self.amount = torch.zeros((), dtype=up.dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., in) -> (..., out)."""
        down, up = cast(Tensor, self.down), cast(Tensor, self.up)
        added: Tensor = F.linear(F.linear(x, down), up) * self.amount
        out: Tensor = self.base(x)
        return out + added


def inject(
    transformer: nn.Module, lora: Mapping[str, Tensor], path: Path, device: torch.device
) -> None:
    """Put an adapter's LoRA, in peft's names and with alpha = r, beside the layers that it is for.

    ``device`` is where the transformer runs. Raises ConfigError where a layer is not there or has
    another size.
    """
    for name in sorted({key.removesuffix(DOWN).removesuffix(UP) for key in lora}):
        down, up = lora.get(name + DOWN), lora.get(name + UP)
        base = _layer(transformer, name)
        shape = getattr(base, "out_features", 0), getattr(base, "in_features", 0)
        if down is None or up is None or base is None or (up.shape[0], down.shape[1]) != shape:
            raise ConfigError(
                f"dino_adapter {str(path)!r} has a LoRA for {name}, which this model has not",
                hint="Name the adapter that was trained for this very model.",
            )
        bias = cast(Tensor, base.bias)  # has the dtype and place of the layer, float8 or not
        parent, _, leaf = name.rpartition(".")
        small = LowRank(base, down.to(bias), up.to(bias), device)
        setattr(transformer.get_submodule(parent), leaf, small)


def _layer(transformer: nn.Module, name: str) -> nn.Module | None:
    try:
        return transformer.get_submodule(name)
    except AttributeError:
        return None


def use(transformer: nn.Module, amount: float) -> None:
    """Let every LoRA that was injected count by ``amount`` (0 to 1) from now on."""
    for module in transformer.modules():
        if isinstance(module, LowRank):
            module.amount.fill_(amount)
