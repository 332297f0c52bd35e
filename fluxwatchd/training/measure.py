"""Figures on pictures never trained on, seen during training: x4, tiled, all pictures at once.

A quick look for whoever trains; the published figures come from `fluxwatchd bench`, which runs the
whole pipeline.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fluxwatchd.engine import dino
from fluxwatchd.engine.flux import Tokens, pack, unpack, velocity
from fluxwatchd.engine.projector import Projector
from fluxwatchd.training import common, data
from fluxwatchd.training.modules import Nano

SCALE = 4
TILE, OVERLAP, UNIT = 256, 32, 8


@dataclass(frozen=True, slots=True)
class Pairs:
    """``truth`` (N, 3, H, W), ``small`` at a quarter, Pillow's ``bicubic`` and Lanczos ``base``."""

    truth: Tensor
    small: Tensor
    bicubic: Tensor
    base: Tensor


def pairs(folder: Path, device: torch.device) -> Pairs:
    """Every picture, portraits turned, cut to the size of the smallest and to whole tokens."""
    arrays = [data.read(file) for file in data.find(folder)]
    arrays = [a if a.shape[0] <= a.shape[1] else a.transpose(1, 0, 2) for a in arrays]
    unit = UNIT * SCALE
    tall, wide = (min(a.shape[i] for a in arrays) // unit * unit for i in (0, 1))
    truth = [Image.fromarray(np.ascontiguousarray(a[:tall, :wide])) for a in arrays]
    size = (wide // SCALE, tall // SCALE)
    small = [image.resize(size, Image.Resampling.BICUBIC) for image in truth]

    def stack(images: list[Image.Image]) -> Tensor:
        array = np.stack([np.asarray(image) for image in images])
        return torch.from_numpy(array).to(device).permute(0, 3, 1, 2).float() / 255

    bicubic = [image.resize((wide, tall), Image.Resampling.BICUBIC) for image in small]
    base = [image.resize((wide, tall), Image.Resampling.LANCZOS) for image in small]
    return Pairs(stack(truth), stack(small), stack(bicubic), stack(base))


def cuts(length: int) -> list[tuple[int, int]]:
    """Even tiles along one side, px: the fewest that cover it at native size with the overlap."""
    count = max(1, math.ceil((length - OVERLAP) / (TILE - OVERLAP) - 0.15))
    side = math.ceil((length + (count - 1) * OVERLAP) / count / UNIT) * UNIT
    side = min(side, length)
    room = length - side
    starts = [round(room * i / max(1, count - 1) / UNIT) * UNIT for i in range(count)]
    return [(start, start + side) for start in starts]


def ramp(length: int) -> Tensor:
    """Blend weights of one side, in latent cells, never 0."""
    edge = OVERLAP // 4
    place = torch.arange(length) + 1.0
    return (torch.minimum(place, place.flip(0)) / (edge + 1)).clamp(max=1)


@torch.no_grad()
def upscale(
    nano: Nano, seen: Pairs, sigmas: list[float], *, plain: bool, strength: float, tokens: Any
) -> Tensor:
    """Sample every picture of ``seen``, tiles fused at every step; (N, 3, H, W) 0..1."""
    device = seen.base.device
    base = torch.cat([nano.encode(part) for part in seen.base.split(6)])
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0)).to(device)
    latents = (1 - sigmas[0]) * base + sigmas[0] * noise
    places = tiles(seen)
    text = nano.text(device)
    for now, then in itertools.pairwise(sigmas):
        total, weight = torch.zeros_like(base), torch.zeros_like(base[:1, :1])
        for number, (rows, columns) in enumerate(places):
            cells = (slice(rows[0] // 4, rows[1] // 4), slice(columns[0] // 4, columns[1] // 4))
            grid = ((rows[1] - rows[0]) // UNIT, (columns[1] - columns[0]) // UNIT)
            part = pack(latents[..., cells[0], cells[1]])
            predicted = velocity(
                nano.transformer,
                part,
                torch.full((len(part),), now, device=device),
                grid,
                text,
                source=None if plain else pack(base[..., cells[0], cells[1]]),
                tokens=tokens[number] if tokens else None,
                dino_strength=strength,
            ).float()
            blend = (ramp(grid[0] * 2)[:, None] * ramp(grid[1] * 2)).to(device)
            total[..., cells[0], cells[1]] += blend * unpack(predicted, grid)
            weight[..., cells[0], cells[1]] += blend
        latents = latents + (then - now) * total / weight
    return torch.cat([nano.decode(part) for part in latents.split(6)]).clamp(0, 1)


def tiles(seen: Pairs) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(rows, columns) of every tile, px."""
    height, width = seen.truth.shape[-2:]
    return [(rows, columns) for rows in cuts(height) for columns in cuts(width)]


@torch.no_grad()
def features(encoder: dino.DinoEncoder, spec: Any, small: Tensor, seen: Pairs) -> list[Any]:
    """Features of every tile of every small picture: one entry a tile, N = pictures."""
    found = []
    for rows, columns in tiles(seen):
        grid = ((rows[1] - rows[0]) // UNIT, (columns[1] - columns[0]) // UNIT)
        box = (rows[0] / SCALE, columns[0] / SCALE, rows[1] / SCALE, columns[1] / SCALE)
        cells = spec.tile_grid(grid) if spec else (16, 16)
        each = [
            dino.encode_tiles(encoder, small[i : i + 1], [box], cells) for i in range(len(small))
        ]
        found.append(
            dino.Features(torch.cat([f.patches for f in each]), torch.cat([f.whole for f in each]))
        )
    return found


@torch.no_grad()
def tokens_of(projector: Projector, source: list[dino.Features], seen: Pairs) -> list[Tokens]:
    """The tokens of every tile, of its ``source`` features."""
    return [
        projector.tokens(found, ((rows[1] - rows[0]) // UNIT, (columns[1] - columns[0]) // UNIT))
        for (rows, columns), found in zip(tiles(seen), source, strict=True)
    ]


def ablation(nano: Nano, folder: Path, device: torch.device, log: common.Log) -> dict[str, Any]:
    """nano with two steps, and img2img from sigma .6 and .8, at DINO strengths 0 to 1."""
    seen = pairs(folder, device)
    figures: dict[str, Any] = {"bicubic": row(seen.bicubic, seen.truth)}
    tokens, source = None, None
    if nano.encoder and nano.projector:
        source = features(nano.encoder, nano.projector.spec, seen.small, seen)
        tokens = tokens_of(nano.projector, source, seen)
    modes = {
        "nano": ([1.0, 0.5, 0.0], False),
        "img2img_.6": ([0.6, 0.45, 0.3, 0.15, 0.0], True),
        "img2img_.8": ([0.1 * i for i in range(8, -1, -1)], True),
    }
    log(bicubic=figures["bicubic"])
    for name, (sigmas, plain) in modes.items():
        before = None
        for strength in (0.0, 0.5, 1.0) if tokens else (0.0,):
            with common.autocast(device):
                result = upscale(nano, seen, sigmas, plain=plain, strength=strength, tokens=tokens)
            figure = row(result, seen.truth)
            psnr = luma_psnr(result, seen.truth)
            if source and nano.encoder and nano.projector:
                shrunk = data.resize(result, (seen.small.shape[-2], seen.small.shape[-1])).clamp(
                    0, 1
                )
                mine = features(nano.encoder, nano.projector.spec, shrunk, seen)
                each = torch.stack(
                    [dino.drift(a, b) for a, b in zip(mine, source, strict=True)]
                ).mean(0)
                figure["drift"] = float(each.mean())
                if before is not None:
                    figure["better"] = int((psnr > before[0]).sum())
                    figure["nearer"] = int((each < before[1]).sum())
                before = before or (psnr, each)
            figures[f"{name}@{strength:g}"] = figure
            log(mode=name, strength=strength, **figure)
    return figures


@torch.no_grad()
def reconstruction(nano: Nano, folder: Path, device: torch.device) -> dict[str, float]:
    """What the autoencoder alone does to the true pictures."""
    seen = pairs(folder, device)
    with common.autocast(device):
        back = torch.cat([nano.decode(nano.encode(part)) for part in seen.truth.split(6)])
    return row(back.clamp(0, 1), seen.truth)


# --- metrics --------------------------------------------------------------------------------


def row(result: Tensor, truth: Tensor) -> dict[str, float]:
    """PSNR-Y (dB), SSIM and GMSD, means over the pictures, 4 px of border left out."""
    result = (result * 255).round() / 255
    return {
        "psnr_y": float(luma_psnr(result, truth).mean()),
        "ssim": float(ssim(result, truth).mean()),
        "gmsd": float(gmsd(result, truth).mean()),
    }


def luma(rgb: Tensor) -> Tensor:
    """BT.601 luma as MATLAB has it, 16..235, without 4 px of border: (N, 1, H, W)."""
    weights = torch.tensor((65.481, 128.553, 24.966), device=rgb.device)[:, None, None]
    return (rgb.float() * weights).sum(1, keepdim=True)[..., 4:-4, 4:-4] + 16


def luma_psnr(result: Tensor, truth: Tensor) -> Tensor:
    """dB, by picture."""
    error = (luma(result) - luma(truth)).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim(result: Tensor, truth: Tensor) -> Tensor:
    """Wang et al. 2004: Gaussian window, 11 px, sigma 1.5; by picture."""
    a, b = luma(result), luma(truth)
    place = torch.arange(11, device=a.device) - 5.0
    line = torch.exp(-(place**2) / 4.5)
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def blurred(plane: Tensor) -> Tensor:
        return F.conv2d(plane, window)

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 6.5025) * (2 * both + 58.5225)
    bottom = (mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225)
    return (top / bottom).mean((1, 2, 3))


def gmsd(result: Tensor, truth: Tensor) -> Tensor:
    """Xue et al. 2014: deviation of the gradient magnitudes' likeness; by picture."""
    prewitt = torch.tensor([[1.0, 0, -1]] * 3, device=truth.device)[None, None] / 3

    def gradient(rgb: Tensor) -> Tensor:
        plane = F.avg_pool2d(luma(rgb), 2)
        across, down = F.conv2d(plane, prewitt), F.conv2d(plane, prewitt.transpose(2, 3))
        return (across**2 + down**2).sqrt()

    a, b = gradient(result), gradient(truth)
    return ((2 * a * b + 170) / (a**2 + b**2 + 170)).std((1, 2, 3))
