"""What DINO does for one picture: which mode runs, the tokens of every tile, drift."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxwatchd.config import Profile
from fluxwatchd.engine import Beat, faults
from fluxwatchd.engine.dino import (
    DinoEncoder,
    FeatureCache,
    Features,
    drift,
    encode_picture,
    encode_tiles,
)
from fluxwatchd.engine.flux import Tokens
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.projector import Projector
from fluxwatchd.engine.resample import Box
from fluxwatchd.engine.tiles import Grid
from fluxwatchd.errors import ConfigError

Floats = NDArray[np.float32]

BATCH = 8
"""Tiles that go through the encoder at once; a beat lies between."""
CELL_TOKENS, MOST_CELLS, MARGIN = 2, 16, 2
"""Where no adapter says it: tokens a DINO cell, most cells a side of a tile, cells around it."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What will run: off, tokens, guide or both; with the reason where ``auto`` settled on off."""

    name: str
    reason: str | None = None

    @property
    def tokens(self) -> bool:
        """Whether tokens are appended to the text states."""
        return self.name in {"tokens", "both"}

    @property
    def guide(self) -> bool:
        """Whether the predicted clean image is guided."""
        return self.name in {"guide", "both"}


def resolve(profile: Profile, model: Model, *, can_guide: bool) -> Mode:
    """Turn ``dino_mode`` into what will run.

    ``can_guide`` says that there is guidance for this model. Raises ConfigError where an explicit
    wish cannot be met.
    """
    wish = profile.dino_mode
    if wish == "off":
        return Mode("off", "dino_mode is off")
    if not profile.dino_strength:
        return Mode("off", "dino_strength is 0")
    missing = _missing(model, can_guide)
    if wish == "auto":
        for mode in ("tokens", "guide"):
            if missing[mode] is None:
                return Mode(mode)
        return Mode("off", missing["tokens"])
    for part in ("tokens", "guide") if wish == "both" else (wish,):
        if missing[part] is not None:
            raise ConfigError(
                f"dino_mode is {wish!r}, but {missing[part]}",
                hint='Set dino_mode = "auto", or name a dino_adapter and dino_encoder that fit.',
            )
    return Mode(wish)


def _missing(model: Model, can_guide: bool) -> dict[str, str | None]:
    """What each mode lacks; None where it lacks nothing."""
    if model.encoder is None:
        reason = model.dino_reason or "there is no DINO encoder"
        return {"tokens": reason, "guide": reason}
    return {
        "tokens": None if model.projector else f"no trained adapter for {model.variant.name}",
        "guide": None if can_guide else f"no guidance for {model.variant.name}",
    }


@dataclass(frozen=True, slots=True)
class Sight:
    """The source's features: ``tiles`` N = tiles, float16 in host memory; ``whole`` N = 1.

    ``boxes`` are the tiles in source px, ``cells`` the DINO cells of a tile, ``tokens_grid`` its
    image tokens (rows, columns), ``size`` the source's (height, width).
    """

    encoder: DinoEncoder
    projector: Projector | None
    tiles: Features
    whole: Features
    boxes: tuple[Box, ...]
    cells: tuple[int, int]
    tokens_grid: tuple[int, int]
    size: tuple[int, int]

    def tokens(self, indices: Sequence[int]) -> Tokens | None:
        """The tokens of these tiles, and None without an adapter."""
        if self.projector is None:
            return None
        chosen = torch.tensor(indices)
        features = Features(self.tiles.patches[chosen], self.tiles.whole[chosen])
        return self.projector.tokens(features.to(self.encoder.device), self.tokens_grid)

    def drift(self, result: Floats, beat: Beat) -> tuple[list[float], float]:
        """Drift of ``result``, (H, W, 3) at the source's size, by tile and over the picture."""
        picture = as_tensor(result, self.encoder.device)
        seen = _look(
            self.encoder,
            picture,
            self.boxes,
            self.cells,
            margin=self._margin,
            stage="drift",
            beat=beat,
        )
        apart = [float(x) for i in _chunks(len(self.boxes)) for x in drift(seen[i], self.tiles[i])]
        return apart, float(drift(encode_picture(self.encoder, picture), self.whole)[0])

    @property
    def _margin(self) -> int:
        return self.projector.spec.margin if self.projector else MARGIN


def look(
    model: Model,
    source: Floats,
    grid: Grid,
    output: tuple[int, int],
    *,
    cache: FeatureCache | None,
    beat: Beat,
) -> Sight | None:
    """Encode the source (H, W, 3), once as a whole and each tile of ``grid`` with surroundings.

    ``output`` is (height, width), px, of the picture without its padding. None without an encoder.
    """
    if model.encoder is None:
        return None
    height, width = source.shape[:2]
    down, across = model.unit * height / output[0], model.unit * width / output[1]
    boxes = tuple(
        (t.top * down, t.left * across, (t.top + t.height) * down, (t.left + t.width) * across)
        for t in grid.tiles
    )
    spec = model.projector.spec if model.projector else None
    cells = spec.tile_grid(grid.shape) if spec else _tile_cells(grid.shape)
    margin = spec.margin if spec else MARGIN
    picture = as_tensor(source, model.encoder.device)
    named = hashlib.sha256(str(source.shape).encode() if cache else b"")
    if cache:
        named.update(np.ascontiguousarray(source).reshape(-1).data)  # no copy
    content = named.hexdigest()
    whole = encode_picture(model.encoder, picture, cache=cache, content=content)
    tiles = _look(
        model.encoder,
        picture,
        boxes,
        cells,
        margin=margin,
        stage="dino",
        beat=beat,
        cache=cache,
        content=content,
    )
    return Sight(
        model.encoder, model.projector, tiles, whole, boxes, cells, grid.shape, (height, width)
    )


def _tile_cells(tokens: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (max(1, min(MOST_CELLS, round(n / CELL_TOKENS))) for n in tokens)
    return rows, columns


def _look(
    encoder: DinoEncoder,
    picture: Tensor,
    boxes: Sequence[Box],
    cells: tuple[int, int],
    *,
    margin: int,
    stage: str,
    beat: Beat,
    cache: FeatureCache | None = None,
    content: str = "",
) -> Features:
    """Features of every box, float16 in host memory (what the cache rounds to anyway)."""
    seen, start, size = [], 0, BATCH
    while start < len(boxes):
        beat(stage, start, len(boxes))
        part = boxes[start : start + size]
        try:
            features = encode_tiles(
                encoder, picture, part, cells, margin=margin, cache=cache, content=content
            )
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not faults.is_memory(error):
                raise
            size //= 2
            continue
        seen.append(Features(features.patches.half().cpu(), features.whole.half().cpu()))
        start += len(part)
    beat(stage, len(boxes), len(boxes))
    return Features(torch.cat([f.patches for f in seen]), torch.cat([f.whole for f in seen]))


def _chunks(count: int) -> list[slice]:
    return [slice(i, min(i + BATCH, count)) for i in range(0, count, BATCH)]


def as_tensor(rgb: Floats, device: torch.device) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W) on ``device``."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].to(device)
