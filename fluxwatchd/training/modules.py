"""The modules of nano while they are trained: to latents and back, their text, their files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.flux import Text
from fluxwatchd.engine.projector import Projector
from fluxwatchd.training import common

TEXT_TOKENS, POOLED = 8, 32


@dataclass(slots=True)
class Nano:
    """The modules of nano; ``projector`` and ``encoder`` only with DINO."""

    vae: Any
    transformer: Any
    projector: Projector | None = None
    encoder: DinoEncoder | None = None

    def encode(self, rgb: Tensor) -> Tensor:
        """(N, 3, H, W) 0..1 -> normalised latents (N, C, H/4, W/4), float32."""
        config = self.vae.config
        latents = self.vae.encode(channels_last(rgb * 2 - 1)).latents.float()
        scaled: Tensor = (latents - config.shift_factor) * config.scaling_factor
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> (N, 3, H, W), about 0..1, not clamped."""
        config = self.vae.config
        raw = latents / config.scaling_factor + config.shift_factor
        pixels: Tensor = self.vae.decode(channels_last(raw)).sample.float() * 0.5 + 0.5
        return pixels

    def text(self, device: torch.device) -> Text:
        """nano reads no text: zeros."""
        width = self.transformer.config.joint_attention_dim
        return Text(
            torch.zeros(1, TEXT_TOKENS, width, device=device), torch.zeros(1, POOLED, device=device)
        )

    def save(self, folder: Path) -> None:
        """Write float16 weights in diffusers' layout."""
        common.half_copy(self.vae).save_pretrained(folder / "vae", safe_serialization=True)
        common.half_copy(self.transformer).save_pretrained(
            folder / "transformer", safe_serialization=True
        )
        if self.projector:
            self.projector.save(folder / "dino_adapter" / "adapter.safetensors")


def channels_last(tensor: Tensor) -> Tensor:
    """In the layout that convolutions like best."""
    return tensor.contiguous(memory_format=torch.channels_last)
