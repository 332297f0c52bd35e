"""A model as the pipeline sees it: modules, where they lie, and what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.flux import Text
from fluxwatchd.engine.holding import Holding
from fluxwatchd.engine.kernels import Tuning
from fluxwatchd.engine.projector import Projector
from fluxwatchd.engine.vae import Vae
from fluxwatchd.job import Checkpoint
from fluxwatchd.variants import Variant

TextSource = Callable[[str], Text]
"""The text states for a prompt, on the model's device and in its dtype."""


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that a picture needs, resident on ``device``.

    ``packing`` is latent cells per token side. ``dino_reason`` says why ``encoder`` is None;
    ``encoder_name`` and ``adapter_name`` are what the record calls them. ``tiny`` is a small
    decoder of the same latents for guidance, where ``vae`` is not small itself. ``holding`` is how
    the transformer's weights are held, None where they are simply there; ``tuning`` what was found
    about its speed on a GPU. ``notes`` are sentences on how it was loaded, for the record.
    """

    variant: Variant
    transformer: nn.Module
    vae: Vae
    text: TextSource
    device: torch.device
    dtype: torch.dtype
    checkpoint: Checkpoint
    packing: int = 2
    encoder: DinoEncoder | None = None
    projector: Projector | None = None
    encoder_name: str | None = None
    adapter_name: str | None = None
    dino_reason: str | None = None
    tiny: Vae | None = None
    holding: Holding | None = None
    tuning: Tuning | None = None
    notes: tuple[str, ...] = ()

    @property
    def unit(self) -> int:
        """Side of a token in output px."""
        return self.vae.factor * self.packing

    @property
    def width(self) -> int:
        """Values a token has inside the transformer."""
        config: Any = cast(Any, self.transformer).config
        return int(config.num_attention_heads * config.attention_head_dim)
