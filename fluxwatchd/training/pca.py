"""``python -m fluxwatchd.training.pca``: patch features as colours, beside their picture.

The first three principal components of the patches' features become red, green and blue (as in
Oquab et al. 2023, figure 1): what has one colour, the encoder takes for one kind of thing.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluxwatchd.engine.dino import DinoEncoder, fit_grid
from fluxwatchd.training import common, data
from fluxwatchd.training.common import option


@dataclass(frozen=True, slots=True)
class PcaOptions:
    """Draw the features of pictures."""

    images: Path = field(default=Path("pictures"), metadata={"help": "folder of pictures"})
    dino: Path = field(default=Path("dino"), metadata={"help": "folder of the DINO encoder"})
    output: Path = field(default=Path("pca.png"), metadata={"help": "picture to write"})
    limit: int = option(4, "how many pictures")
    cells: int = option(48, "cells on the longer side")


def main(options: PcaOptions) -> None:
    """One row a picture: itself, and its features."""
    encoder = DinoEncoder.load(options.dino)
    rows = []
    for file in data.find(options.images)[: options.limit]:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        image.thumbnail((384, 384))
        pixels = np.array(image)
        rgb = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        grid = fit_grid(rgb.shape[-2], rgb.shape[-1], options.cells)
        last = encoder.features(rgb, grid).patches[0, ..., -encoder.width :]
        colours = Image.fromarray((components(last) * 255).byte().numpy())
        shown = colours.resize(image.size, Image.Resampling.NEAREST)
        rows.append(np.concatenate([pixels, np.asarray(shown)], 1))
    wide = min(row.shape[1] for row in rows)
    Image.fromarray(np.concatenate([row[:, :wide] for row in rows])).save(options.output)


def components(features: Tensor) -> Tensor:
    """(rows, columns, F) -> (rows, columns, 3) in 0..1: the principal components, stretched."""
    flat = features.flatten(0, 1)
    flat = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    values = flat @ axes[:3].T
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    spread: Tensor = ((values - low) / (high - low)).clamp(0, 1)
    return spread.reshape(features.shape[0], features.shape[1], 3)


if __name__ == "__main__":
    main(common.parse(PcaOptions))
