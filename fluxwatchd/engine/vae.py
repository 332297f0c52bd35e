"""Pictures to latents and back, in overlapping blended windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxwatchd.engine import Beat, faults, kernels, memory, transfer
from fluxwatchd.engine.tiles import Grid, Tile, plan, plan_fixed
from fluxwatchd.errors import ConfigError

Floats = NDArray[np.float32]

CPU_WINDOW = 384
"""Side of a window on a CPU, px: larger ones fall out of its cache and take longer a pixel."""
GPU_WINDOW = 1088
"""Side of a window on a GPU, px: 8 GB of memory do for FLUX.1's autoencoder. With FLUX.1's overlap
of 64 px, n of them cover n x 1024 px."""
ON_DEVICE = 8
"""A decoded picture is put together on a GPU if it takes at most this part of what is free."""
OVERLAP_CELLS = 8
"""Overlap of two windows, latent cells: what a cell sees around it, mostly."""
NEVER = -1
LEAST_WINDOW = 2 * OVERLAP_CELLS
"""Side below which no window is halved, latent cells."""

Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class Vae:
    """An autoencoder from diffusers, of either kind, behind one face.

    Pixels are (B, 3, H, W) in 0..1; latents (B, channels, H/factor, W/factor), normalised by
    z = (raw - shift) * scale as the model's configuration says. H and W are multiples of
    ``factor``. ``compiled``: side, latent cells, of the square windows that it is compiled for; 0
    if it is not, NEVER if it is and is to run as written all the same. ``steady``: windows are not
    made smaller where memory is short.
    """

    module: nn.Module
    factor: int
    channels: int
    shift: float
    scale: float
    device: torch.device
    dtype: torch.dtype
    compiled: int = 0
    steady: bool = False

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
        with self._for_window([side // self.factor for side in pixels.shape[-2:]]):
            out = cast(Any, self.module).encode(scaled.contiguous(memory_format=self._layout))
        raw = out.latents if hasattr(out, "latents") else out.latent_dist.mode()
        return cast(Tensor, (raw.float() - self.shift) * self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to pixels, float32, not clipped."""
        raw = (latents.to(self.device).float() / self.scale + self.shift).to(self.dtype)
        with self._for_window(latents.shape[-2:]):
            out = cast(Any, self.module).decode(raw.contiguous(memory_format=self._layout))
        return cast(Tensor, out.sample.float() * 0.5 + 0.5)

    def _for_window(self, sides: Sequence[int]) -> AbstractContextManager[None]:
        """Compiled for the one size of windows, and without a gradient; else as written."""
        fits = all(side == self.compiled for side in sides) and not torch.is_grad_enabled()
        return nullcontext() if fits or not self.compiled else kernels.as_written(self.module)

    @property
    def as_written(self) -> Vae:
        """The same, never compiled: what is compiled holds to the algorithms it was compiled by."""
        return replace(self, compiled=NEVER) if self.compiled else self

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


def encode_picture(vae: Vae, pixels: Floats | Tensor, beat: Beat) -> Tensor:
    """(H, W, 3) in 0..1 -> latents (C, H/f, W/f), float32 on the VAE's device."""
    whole = torch.as_tensor(pixels)
    if _has_room(vae.device, whole.nbytes):
        whole = transfer.send(whole, vae.device)
    return _in_windows(vae, lambda side: _encode(vae, whole, side, beat))


def decode_picture(vae: Vae, latents: Tensor, beat: Beat) -> Floats:
    """Latents (C, h, w) -> (f h, f w, 3), float32 in host memory, not clipped."""
    return cast(Floats, decode_there(vae, latents, beat).cpu().numpy())


def decode_there(vae: Vae, latents: Tensor, beat: Beat) -> Tensor:
    """Latents (C, h, w) -> (f h, f w, 3), float32, not clipped.

    On the VAE's device, which may not have come to it yet; in host memory where that has no room.
    """
    return _in_windows(vae, lambda side: _decode(vae, latents, side, beat))


def _in_windows(vae: Vae, work: Callable[[int], Work]) -> Work:
    """Do ``work`` in windows of the VAE's size; whenever memory is short, of half of that."""
    side = vae.window
    while True:
        try:
            return work(side)
        except (RuntimeError, MemoryError) as error:
            if vae.steady or side <= LEAST_WINDOW or not faults.is_memory(error):
                raise
        side = max(LEAST_WINDOW, side // 2)


def _encode(vae: Vae, pixels: Tensor, side: int, beat: Beat) -> Tensor:
    height, width = pixels.shape[0] // vae.factor, pixels.shape[1] // vae.factor
    out = torch.zeros(vae.channels, height, width, device=vae.device, dtype=torch.float32)
    for tile, weight in _walk(_windows(vae, height, width, side), 1, "encode", beat, vae.device):
        window = transfer.send(pixels[tile.cut(vae.factor)].contiguous(), vae.device)
        latents = vae.encode(window.permute(2, 0, 1)[None])[0]
        out[:, *tile.cut()] += latents * weight
    return out


def _decode(vae: Vae, latents: Tensor, side: int, beat: Beat) -> Tensor:
    rows, columns = latents.shape[1:]
    height, width = rows * vae.factor, columns * vae.factor
    windows = _windows(vae, rows, columns, side)
    home = vae.device if _has_room(vae.device, 12 * height * width) else torch.device("cpu")
    out = torch.zeros(height, width, 3, device=home, dtype=torch.float32)
    for tile, weight in _walk(windows, vae.factor, "decode", beat, home):
        pixels = vae.decode(latents[None, :, *tile.cut()])[0].permute(1, 2, 0).to(home)
        out[tile.cut(vae.factor)] += pixels * weight[..., None]
    return out


def _windows(vae: Vae, height: int, width: int, side: int) -> Grid:
    """Windows over (height, width) latent cells: even ones, or of the size it is compiled for."""
    layout = plan_fixed if side == vae.compiled else plan
    return layout(height, width, side, OVERLAP_CELLS)


def _has_room(device: torch.device, size: int) -> bool:
    """Whether ``size`` bytes are little beside what a GPU has free."""
    return device.type == "cuda" and size <= memory.free_bytes(str(device)) // ON_DEVICE


def _walk(
    windows: Grid, per: int, stage: str, beat: Beat, device: torch.device
) -> Iterator[tuple[Tile, Tensor]]:
    """Every window with its weight on ``device``, a beat before each and one at the end."""
    tiles = windows.tiles
    weights = transfer.weights(windows, per, device)
    for done, (tile, weight) in enumerate(zip(tiles, weights, strict=True)):
        beat(stage, done, len(tiles))
        yield tile, weight
    beat(stage, len(tiles), len(tiles))
