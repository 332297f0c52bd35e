"""Pictures to latents and back, in overlapping blended windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxwatchd.engine import Beat, faults
from fluxwatchd.engine.tiles import Grid, Tile, Weights, plan
from fluxwatchd.errors import ConfigError

Floats = NDArray[np.float32]

CPU_WINDOW = 384
"""Side of a window on a CPU, px: larger ones fall out of its cache and take longer a pixel."""
GPU_WINDOW = 1024
"""Side of a window on a GPU, px: 8 GB of memory do for FLUX.1's autoencoder."""
OVERLAP_CELLS = 8
"""Overlap of two windows, latent cells: what a cell sees around it, mostly."""
LEAST_WINDOW = 2 * OVERLAP_CELLS
"""Side below which no window is halved, latent cells."""

Work = TypeVar("Work", Tensor, Floats)


@dataclass(frozen=True, slots=True)
class Vae:
    """An autoencoder from diffusers, of either kind, behind one face.

    Pixels are (B, 3, H, W) in 0..1; latents (B, channels, H/factor, W/factor), normalised by
    z = (raw - shift) * scale as the model's configuration says. H and W are multiples of
    ``factor``.
    """

    module: nn.Module
    factor: int
    channels: int
    shift: float
    scale: float
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, module: nn.Module, dtype: torch.dtype = torch.float32) -> Vae:
        """Read everything from the configuration of a float32 ``module``, and narrow it."""
        config: Any = cast(Any, module).config
        blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels")
        if not blocks or config.get("scaling_factor") is None:
            raise ConfigError(f"{config.get('_class_name', 'vae')} is no autoencoder for FLUX")
        first = next(module.parameters())
        _narrow(module, dtype)
        return cls(
            module=module.eval().requires_grad_(False),
            factor=2 ** (len(blocks) - 1),
            channels=int(config.latent_channels),
            shift=float(config.get("shift_factor") or 0.0),
            scale=float(config.scaling_factor),
            device=first.device,
            dtype=dtype,
        )

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels to normalised latents, float32; the distribution's mode, so nothing is random."""
        scaled = (pixels.to(self.device) * 2 - 1).to(self.dtype)
        out = cast(Any, self.module).encode(scaled.contiguous(memory_format=self._layout))
        raw = out.latents if hasattr(out, "latents") else out.latent_dist.mode()
        return cast(Tensor, (raw.float() - self.shift) * self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to pixels, float32, not clipped."""
        raw = (latents.to(self.device).float() / self.scale + self.shift).to(self.dtype)
        out = cast(Any, self.module).decode(raw.contiguous(memory_format=self._layout))
        return cast(Tensor, out.sample.float() * 0.5 + 0.5)

    @property
    def _layout(self) -> torch.memory_format:
        """channels_last is twice as fast on a CPU and slower on a GPU."""
        return torch.channels_last if self.device.type == "cpu" else torch.contiguous_format

    @property
    def window(self) -> int:
        """Side of a window that is fast on this device, latent cells."""
        side = CPU_WINDOW if self.device.type == "cpu" else GPU_WINDOW
        return side // self.factor


def _narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Make everything ``dtype`` but the decoder's last convolution, which stays float32.

    Its output are the pixels: in bfloat16 they would have 8 bits, whatever the picture's depth.
    """
    decoder = cast(nn.Module, module.decoder)
    last = [layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d)][-1]
    kept = {name: tensor.clone() for name, tensor in last.state_dict().items()}
    module.to(dtype)
    last.float().load_state_dict(kept)
    last.register_forward_pre_hook(lambda _, given: (given[0].float(),))


def encode_picture(vae: Vae, pixels: Floats, beat: Beat) -> Tensor:
    """(H, W, 3) in 0..1 -> latents (C, H/f, W/f), float32 on the VAE's device."""
    return _in_windows(vae, lambda side: _encode(vae, pixels, side, beat))


def decode_picture(vae: Vae, latents: Tensor, beat: Beat) -> Floats:
    """Latents (C, h, w) -> (f h, f w, 3), float32 in host memory, not clipped."""
    return _in_windows(vae, lambda side: _decode(vae, latents, side, beat))


def _in_windows(vae: Vae, work: Callable[[int], Work]) -> Work:
    """Do ``work`` in windows of the VAE's size; whenever memory is short, of half of that."""
    side = vae.window
    while True:
        try:
            return work(side)
        except (RuntimeError, MemoryError) as error:
            if side <= LEAST_WINDOW or not faults.is_memory(error):
                raise
        side = max(LEAST_WINDOW, side // 2)


def _encode(vae: Vae, pixels: Floats, side: int, beat: Beat) -> Tensor:
    height, width = pixels.shape[0] // vae.factor, pixels.shape[1] // vae.factor
    out = torch.zeros(vae.channels, height, width, device=vae.device)
    for tile, weight in _walk(plan(height, width, side, OVERLAP_CELLS), 1, "encode", beat):
        rows, columns = tile.cut(vae.factor)
        window = torch.from_numpy(pixels[rows, columns].transpose(2, 0, 1)[None])
        out[:, *tile.cut()] += vae.encode(window)[0] * torch.from_numpy(weight).to(vae.device)
    return out


def _decode(vae: Vae, latents: Tensor, side: int, beat: Beat) -> Floats:
    height, width = latents.shape[1:]
    out = np.zeros((height * vae.factor, width * vae.factor, 3), np.float32)
    for tile, weight in _walk(plan(height, width, side, OVERLAP_CELLS), vae.factor, "decode", beat):
        pixels = vae.decode(latents[None, :, *tile.cut()])[0]
        out[tile.cut(vae.factor)] += pixels.permute(1, 2, 0).cpu().numpy() * weight[..., None]
    return out


def _walk(windows: Grid, per: int, stage: str, beat: Beat) -> Iterator[tuple[Tile, Weights]]:
    """Every window with its weight, a beat before each and one at the end."""
    tiles = windows.tiles
    for done, (tile, weight) in enumerate(zip(tiles, windows.weights(per), strict=True)):
        beat(stage, done, len(tiles))
        yield tile, weight
    beat(stage, len(tiles), len(tiles))
