"""One evaluation of a FLUX transformer: latents in, velocity out; the same code trains and runs.

Latents are (B, C, h, w) in VAE cells; packed they are (B, N, 4C) with N = (h/2)(w/2) tokens, each
2x2 cells. ``grid`` is the token grid (rows, columns), so N = rows * columns.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fluxwatchd.engine import lowrank


@dataclass(frozen=True, slots=True)
class Text:
    """What the model reads as text: ``states`` (1, T, D), ``pooled`` (1, P)."""

    states: Tensor
    pooled: Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """DINO features as extra text states.

    ``states`` (B, K, D), one row a tile; ``ids`` (K, 3): 0, row, column in tokens of the tile,
    fractions allowed, the same for every tile of the batch.
    """

    states: Tensor
    ids: Tensor


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, (h/2)(w/2), 4C), ordered channel, row, column."""
    b, c, h, w = latents.shape
    cells = latents.reshape(b, c, h // 2, 2, w // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(packed: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, rows * columns, 4C) -> (B, C, 2 rows, 2 columns); the inverse of :func:`pack`."""
    b, _, c = packed.shape
    rows, columns = grid
    cells = packed.reshape(b, rows, columns, c // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, rows * 2, columns * 2)


def image_ids(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(N, 3): 0, row, column of every token; float32, counted from the tile's own corner."""
    rows, columns = grid
    ids = torch.zeros(rows, columns, 3, device=device, dtype=torch.float32)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids.reshape(-1, 3)


def velocity(
    transformer: nn.Module,
    latents: Tensor,
    sigma: Tensor,
    grid: tuple[int, int],
    text: Text,
    *,
    source: Tensor | None = None,
    guidance: float | None = None,
    tokens: Tokens | None = None,
    dino_strength: float = 1.0,
) -> Tensor:
    """Predict the velocity (noise - clean) of packed ``latents``.

    Shapes: latents (B, N, 4C), sigma (B,) in 0..1, source (B, N, 4C) or None, result (B, N, 4C).
    ``source`` is concatenated on the channel axis; a model with source channels that gets None
    gets zeros. ``dino_strength`` in 0..1 is laid on the attention logits of the DINO keys as
    log(strength); at 0 the tokens are left out, which is the model without DINO to the bit. A LoRA
    that was trained with the tokens counts as much as they do.
    """
    b = latents.shape[0]
    hidden = _with_source(transformer, latents, source)
    states = text.states.expand(b, -1, -1)
    text_ids = torch.zeros(states.shape[1], 3, device=latents.device, dtype=torch.float32)
    extra: dict[str, Any] = {}
    lowrank.use(transformer, 0.0 if tokens is None else dino_strength)
    if tokens is not None and dino_strength > 0:
        text_length = states.shape[1]
        states = torch.cat([states, tokens.states.to(states.dtype)], 1)
        text_ids = torch.cat([text_ids, tokens.ids.to(text_ids)])
        if dino_strength < 1:
            keys = states.shape[1] + hidden.shape[1]
            bias = torch.zeros(1, 1, 1, keys, device=hidden.device, dtype=hidden.dtype)
            bias[..., text_length : states.shape[1]] = math.log(dino_strength)
            extra["joint_attention_kwargs"] = {"attention_mask": bias}
    if guidance is not None:
        extra["guidance"] = torch.full((b,), guidance, device=hidden.device, dtype=hidden.dtype)
    output = transformer(
        hidden_states=hidden,
        encoder_hidden_states=states,
        pooled_projections=text.pooled.expand(b, -1),
        timestep=sigma.to(hidden.dtype),
        img_ids=image_ids(grid, latents.device),
        txt_ids=text_ids,
        return_dict=False,
        **extra,
    )[0]
    return cast(Tensor, output)


def _with_source(transformer: nn.Module, latents: Tensor, source: Tensor | None) -> Tensor:
    """Latents with the source's channels behind them, if the model has room for these."""
    wanted = cast(Any, transformer).config.in_channels
    if wanted == latents.shape[-1]:
        return latents
    if source is None:
        source = torch.zeros_like(latents)
    return torch.cat([latents, source.to(latents.dtype)], -1)
