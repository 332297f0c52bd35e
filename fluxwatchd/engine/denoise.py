"""The denoising loop: velocities of all tiles, fused, one Euler step on the whole latent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxwatchd.engine import Beat, flux, transfer
from fluxwatchd.engine.flux import Text, Tokens
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.relief import patiently
from fluxwatchd.engine.resume import NOBODY, Keeper, Place
from fluxwatchd.engine.tiles import Grid, Tile


class Guide(Protocol):
    """Bends the velocity of tiles before they are fused.

    ``velocity`` and ``latents`` (B, C, h, w) float32 on the model's device, ``sigma`` in 0..1,
    ``indices`` the B tiles' places in the grid. Returns the velocity to use, same shape.
    """

    def __call__(
        self, velocity: Tensor, latents: Tensor, sigma: float, indices: Sequence[int]
    ) -> Tensor:
        """The guided velocity."""
        ...


class TokenSource(Protocol):
    """Gives the DINO tokens of tiles."""

    def __call__(self, indices: Sequence[int]) -> Tokens | None:
        """Tokens of the tiles at ``indices``, one row a tile."""
        ...


class Batch:
    """How many tiles go at once; halves when memory is short, and stays so for this picture."""

    def __init__(self, size: int) -> None:
        self.size = size

    def over(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Runs of ``indices`` of the size at that moment."""
        start = 0
        while start < len(indices):
            part = list(indices[start : start + self.size])
            start += len(part)
            yield part

    def halve(self) -> bool:
        """Halve, and say whether there was anything left to halve."""
        if self.size == 1:
            return False
        self.size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True


Phase = tuple[int, int]
"""Latent cells, 0 or more and fewer than a token's side, by which a tile's tokens begin above it
and left of it."""
ALIGNED: tuple[Phase, ...] = ((0, 0),)


@dataclass(frozen=True, slots=True)
class Predictor:
    """The model with all that does not change over a picture.

    ``source`` is the source's latent (C, H, W) of the whole picture, for models that see it. Where
    there are several ``phases`` the velocity is the mean of an evaluation in each: what the model
    draws along the borders of its tokens then cancels out.
    """

    model: Model
    text: Text
    grid: Grid
    batch: Batch
    source: Tensor | None = None
    guidance_scale: float | None = None
    tokens: TokenSource | None = None
    dino_strength: float = 0.0
    guide: Guide | None = None
    phases: tuple[Phase, ...] = ALIGNED

    def shifted(self) -> Predictor:
        """The same, but as the mean over tokens where they are and half a token before that."""
        half = self.model.packing // 2
        return replace(self, phases=((0, 0), (half, half)))

    def __call__(self, latents: Tensor, sigma: float, indices: Sequence[int]) -> Tensor:
        """Velocity of the tiles at ``indices``: (B, C, h, w) float32 -> the same.

        Where memory is short, in smaller batches; then by the model's next plan.
        """
        if len(indices) > self.batch.size:
            return self._split(latents, sigma, indices)
        return patiently(
            self.model, partial(self._attempt, latents, sigma, indices), self.batch.halve
        )

    def _attempt(self, latents: Tensor, sigma: float, indices: Sequence[int]) -> Tensor:
        """One batch, or what has become of it after memory was short."""
        if len(indices) > self.batch.size:
            return self._split(latents, sigma, indices)
        velocity = self._evaluate(latents, sigma, indices, self.phases[0])
        for phase in self.phases[1:]:
            velocity += self._evaluate(latents, sigma, indices, phase)
        velocity /= len(self.phases)
        return self.guide(velocity, latents, sigma, indices) if self.guide else velocity

    def _split(self, latents: Tensor, sigma: float, indices: Sequence[int]) -> Tensor:
        """The same in runs of the batch's size."""
        done: list[Tensor] = []
        start = 0
        while start < len(indices):
            part = slice(start, start + self.batch.size)
            done.append(self(latents[part], sigma, indices[part]))
            start += done[-1].shape[0]
        return torch.cat(done)

    def _evaluate(
        self, latents: Tensor, sigma: float, indices: Sequence[int], phase: Phase
    ) -> Tensor:
        """One evaluation of the transformer on a GPU; on a CPU one a tile.

        A CPU gains nothing from a batch, and rounds a batch of bfloat16 otherwise than its parts:
        tile by tile, the batch's size cannot be seen in the result.
        """
        model = self.model
        if model.device.type == "cpu" and len(indices) > 1:
            singles = (slice(i, i + 1) for i in range(len(indices)))
            return torch.cat(
                [self._evaluate(latents[i], sigma, indices[i], phase) for i in singles]
            )
        framed = frame(latents, phase, model.packing)
        rows, columns = (side // model.packing for side in framed.shape[2:])
        level = torch.full((len(indices),), sigma, device=model.device, dtype=torch.float32)
        velocity = flux.velocity(
            model.transformer,
            flux.pack(framed.to(model.dtype)),
            level,
            (rows, columns),
            self.text,
            source=self._source(indices, phase),
            guidance=self.guidance_scale,
            tokens=self._tokens(indices, phase),
            dino_strength=self.dino_strength,
        )
        top, left = phase
        height, width = latents.shape[2:]
        cells = flux.unpack(velocity, (rows, columns))
        return cells[..., top : top + height, left : left + width].float()

    def _source(self, indices: Sequence[int], phase: Phase) -> Tensor | None:
        """The source's latent under these tiles, packed."""
        if self.source is None:
            return None
        model = self.model
        cuts = cut(self.source, [self.grid.tiles[i] for i in indices], model.packing)
        return flux.pack(frame(cuts, phase, model.packing).to(model.dtype))

    def _tokens(self, indices: Sequence[int], phase: Phase) -> Tokens | None:
        """The tiles' DINO tokens, where they lie when the tile's own tokens begin earlier."""
        tokens = self.tokens(indices) if self.tokens else None
        if tokens is None or phase == (0, 0):
            return tokens
        top, left = (cells / self.model.packing for cells in phase)
        return replace(tokens, ids=tokens.ids + tokens.ids.new_tensor([0.0, top, left]))


def frame(tiles: Tensor, phase: Phase, packing: int) -> Tensor:
    """Tiles (B, C, h, w) mirrored at their sides, so that tokens begin ``phase`` before them."""
    top, left = phase
    bottom, right = -top % packing, -left % packing
    return F.pad(tiles, (left, right, top, bottom), mode="reflect") if top or left else tiles


def cut(latent: Tensor, tiles: Sequence[Tile], packing: int) -> Tensor:
    """(C, H, W) -> (B, C, h, w): a copy of every tile."""
    return torch.stack([latent[:, *tile.cut(packing)] for tile in tiles])


def noise(shape: Sequence[int], seed: int) -> Tensor:
    """One normal field for the whole picture, the same for every device: it is drawn on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    # said, as the default is every thread's, and a library changes it while it loads a model
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def denoise(
    latent: Tensor,
    sigmas: Sequence[float],
    predict: Predictor,
    beat: Beat,
    *,
    keeper: Keeper = NOBODY,
) -> Tensor:
    """Run every step on the whole latent (C, H, W), float32; a beat lies between tile batches.

    At each step the tiles' velocities are added up by weights that sum to 1 in every cell
    (MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113), then one Euler step is taken.
    ``keeper`` is told after every batch, and may know where an earlier try came to.
    """
    grid, packing = predict.grid, predict.model.packing
    tiles = grid.tiles
    weights = list(transfer.weights(grid, packing, latent.device))
    total, before = len(tiles) * (len(sigmas) - 1), keeper.before("denoise")
    latent = before.tensor("latent", latent)
    for step in range(before.step, len(sigmas) - 1):
        first = before.done if step == before.step else 0
        velocity = torch.zeros_like(latent)
        if first:
            velocity = before.tensor("velocity", velocity)
        for part in predict.batch.over(range(first, len(tiles))):
            beat("denoise", step * len(tiles) + part[0], total)
            parts = predict(cut(latent, [tiles[i] for i in part], packing), sigmas[step], part)
            for i, own in zip(part, parts, strict=True):
                velocity[:, *tiles[i].cut(packing)] += weights[i] * own
            # before the first step the latent is but the source and the seed's noise
            known = {"latent": latent} if step else {}
            place = Place("denoise", step, part[-1] + 1, predict.batch.size)
            keeper.note(place, {"velocity": velocity, **known}, ran=len(part))
        latent = latent + velocity.mul_(sigmas[step + 1] - sigmas[step])
        keeper.note(Place("denoise", step + 1, 0, predict.batch.size), {"latent": latent})
    beat("denoise", total, total)
    return latent
