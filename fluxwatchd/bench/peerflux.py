"""What a user of diffusers would write: FluxImg2ImgPipeline, tile by tile, pasted with a ramp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from fluxwatchd.engine.model import Model

TILE, OVERLAP = 1024, 128
"""px of output; what Ultimate SD Upscale and its kin are mostly set to for FLUX."""


def places(side: int, tile: int = TILE, overlap: int = OVERLAP) -> list[int]:
    """Where tiles begin along ``side`` px: every ``tile - overlap``, the last at the edge."""
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - overlap), side - tile]


class DiffusersLoop:
    """A FLUX.1 of ours, its transformer as it is, behind diffusers' pipeline with ``vae``.

    ``offload``: enable_sequential_cpu_offload(), for cards that are too small.
    """

    def __init__(
        self, model: Model, vae: nn.Module, *, tile: int = TILE, offload: bool = False
    ) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

        self._tile, self._model = tile, model
        self._pipe: Any = FluxImg2ImgPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae.to(model.dtype),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=model.transformer,
        )
        self._pipe.set_progress_bar_config(disable=True)
        if offload:
            self._pipe.enable_sequential_cpu_offload(device=model.device)

    def tiles(self, width: int, height: int) -> int:
        """How many tiles a result of that size takes."""
        return len(places(width, self._tile)) * len(places(height, self._tile))

    def upscale(self, source: Image.Image, scale: int, sigmas: Sequence[float]) -> Image.Image:
        """``source`` enlarged by Lanczos, then every tile through the pipeline."""
        size = (source.width * scale, source.height * scale)
        base = source.resize(size, Image.Resampling.LANCZOS)
        out = np.zeros((size[1], size[0], 3), np.float32)
        total = np.zeros((size[1], size[0], 1), np.float32)
        for top in places(size[1], self._tile):
            for left in places(size[0], self._tile):
                box = (left, top, min(left + self._tile, size[0]), min(top + self._tile, size[1]))
                made = np.asarray(self.one(base.crop(box), sigmas), np.float32)
                weight = ramp(made.shape[0], made.shape[1])
                cut = np.s_[box[1] : box[3], box[0] : box[2]]
                out[cut] += made * weight
                total[cut] += weight
        return Image.fromarray((out / total + 0.5).clip(0, 255).astype(np.uint8))

    def one(self, tile: Image.Image, sigmas: Sequence[float]) -> Image.Image:
        """One tile from noise level ``sigmas[0]``, with these very steps.

        diffusers cuts a schedule by ``strength``; so it is given twice as many, and half of them.
        """
        text = self._model.text("")
        steps = len(sigmas)
        unused = np.linspace(1.0, sigmas[0], steps, endpoint=False)
        with torch.no_grad():
            made = self._pipe(
                image=tile,
                prompt_embeds=text.states,
                pooled_prompt_embeds=text.pooled,
                height=tile.height,
                width=tile.width,
                num_inference_steps=2 * steps,
                sigmas=[*unused, *sigmas],
                strength=0.5,
                guidance_scale=3.5,
                generator=torch.Generator("cpu").manual_seed(0),
            )
        image: Image.Image = made.images[0]
        return image


def ramp(height: int, width: int) -> NDArray[np.float32]:
    """(height, width, 1): 1 inside, falling towards the sides over OVERLAP px; never 0."""
    down, across = (
        np.minimum(1.0, (np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5) / OVERLAP)
        for n in (height, width)
    )
    return np.asarray((down[:, None] * across[None, :])[..., None], np.float32)
