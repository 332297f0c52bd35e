"""Runs with something wrong: what DINO does beyond any extra input, and beyond the pixels.

The encoder is replaced, or left out of guidance, and the picture goes through the engine's own
pipeline; no setting of a profile leads there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fluxwatchd.bench.options import seed_for
from fluxwatchd.bench.pictures import Pair, to_picture
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import guidance, loading, pipeline, sight, silent
from fluxwatchd.engine.dino import DinoEncoder, Features, fit_grid
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.resample import Box, Grid, resample
from fluxwatchd.engine.sight import as_tensor
from fluxwatchd.errors import ConfigError
from fluxwatchd.job import Upscaled
from fluxwatchd.variants import BUNDLED

OTHER_PICTURE = "another picture's tokens"
UNTRAINED = "an untrained encoder's tokens"
PIXELS = "the pixel term alone"
CONTROLS: Mapping[str, str] = {OTHER_PICTURE: "tokens", UNTRAINED: "tokens", PIXELS: "guide"}
"""What is wrong in each control, and the mode that it is a control of."""


def encoder_name(profile: Profile) -> str:
    """The DINO encoder that a resolved ``profile`` runs with: a hub id or a folder.

    Raises ConfigError if the bundled model comes without one.
    """
    if profile.dino_encoder is not None:
        return profile.dino_encoder
    if profile.model != BUNDLED:
        return loading.DINO_HUB
    bundled = loading.NANO / "dino"
    if not bundled.is_dir():
        raise ConfigError(
            "no DINO encoder comes with this version", hint="Name one: --set dino_encoder=FOLDER."
        )
    return str(bundled)


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """A model that DINO steers, to be run with something wrong; ``encoder`` is the right one."""

    model: Model
    encoder: DinoEncoder

    @classmethod
    def load(cls, profile: Profile, device: str) -> Self:
        """The model of a resolved ``profile``. Raises ConfigError if no encoder comes with it."""
        settings = EngineSettings()
        model = loading.load(profile, settings, device, None, silent)
        if model.encoder is None:
            raise ConfigError(
                f"there is nothing to be replaced: {model.dino_reason}",
                hint="Name a dino_encoder by --set, or leave the controls out.",
            )
        return cls(guidance.with_decoder(model, profile, settings), model.encoder)

    def run(self, control: str, pair: Pair, other: Pair, profile: Profile, batch: int) -> Upscaled:
        """``pair`` upscaled under one of CONTROLS, ``batch`` tiles at once."""
        model, terms = self.model, guidance.TERMS
        if control == OTHER_PICTURE:
            model = replace(model, encoder=self.seeing(other))
        elif control == UNTRAINED:
            model = replace(model, encoder=untrained(self.encoder))
        elif control == PIXELS:
            terms = replace(terms, dino=0.0)
        else:
            raise ValueError(f"no control is called {control!r}")
        return pipeline.upscale(
            model,
            to_picture(pair.small),
            profile,
            seed_for(profile, pair.small),
            batch=lambda: batch,
            beat=silent,
            make_guide=partial(guidance.make_guide, terms=terms),
        )

    def seeing(self, other: Pair) -> DinoEncoder:
        """The encoder as it sees another picture, which was shrunk by the same scale."""
        scale = other.truth.shape[0] / other.small.shape[0]
        adapter = self.model.projector
        tokens = adapter.spec.cell if adapter else sight.CELL_TOKENS
        floats = other.small.astype(np.float32) / np.float32(255)
        donor = as_tensor(floats, self.model.device)
        return OtherPicture(self.encoder, donor, cell=tokens * self.model.unit / scale)


def untrained(encoder: DinoEncoder, seed: int = 0) -> DinoEncoder:
    """The same network as it was before any training, drawn from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = type(encoder.model)(encoder.model.config)
    return DinoEncoder(network.to(encoder.device), encoder.layers)


class OtherPicture(DinoEncoder):
    """Sees windows of ``donor`` (1, 3, H, W), 0..1, in place of the windows that it is shown.

    Each window has the cells that were asked for, ``cell`` px of the donor a side, and lies at a
    place drawn from the generator, as far as the donor reaches.
    """

    def __init__(self, encoder: DinoEncoder, donor: Tensor, cell: float, seed: int = 0) -> None:
        super().__init__(encoder.model, encoder.layers)
        self._donor = donor
        self._cell = cell
        self._random = np.random.default_rng(seed)

    def features(self, rgb: Tensor, grid: Grid | None = None) -> Features:
        """Features of as many windows of the donor as ``rgb`` (N, 3, H, W) has pictures."""
        grid = grid or fit_grid(rgb.shape[-2], rgb.shape[-1])
        size = (grid[0] * self.patch, grid[1] * self.patch)
        boxes = [self._window(grid) for _ in range(rgb.shape[0])]
        views = torch.cat([resample(self._donor, size, box=box) for box in boxes])
        return super().features(views.clamp(0, 1), grid)

    def _window(self, grid: Grid) -> Box:
        height, width = self._donor.shape[-2:]
        down = min(float(height), grid[0] * self._cell)
        across = min(float(width), grid[1] * self._cell)
        top, left = self._random.uniform(0, (height - down, width - across))
        return float(top), float(left), float(top + down), float(left + across)
