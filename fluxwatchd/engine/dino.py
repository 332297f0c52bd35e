"""DINO features of a picture: encoder, windows, feature cache, drift.

An RGB picture is (N, 3, H, W), float, 0..1; a DINO cell is one patch of it.

Oquab et al. 2023 (DINOv2, arXiv:2304.07193), Darcet et al. 2023 (registers, arXiv:2309.16588).
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxwatchd.engine import faults, library
from fluxwatchd.engine.eyeplaces import MODEL_TYPES
from fluxwatchd.engine.resample import Box, Grid, resample
from fluxwatchd.engine.tensorcache import TensorCache
from fluxwatchd.errors import ConfigError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, as every DINO model expects (facebook/dinov2-base, preprocessor_config.json)."""

PICTURE_CELLS = 24
"""DINO cells on the longer side of a picture that is encoded as a whole."""


# --- encoder --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder saw.

    ``patches`` (N, rows, columns, F): the chosen layers of every cell, concatenated, the last
    layer last. ``whole`` (N, W): the class token, a summary of the whole window.
    """

    patches: Tensor
    whole: Tensor

    def __getitem__(self, index: slice) -> "Features":
        return Features(self.patches[index], self.whole[index])

    def to(self, device: torch.device | str) -> "Features":
        """The same features on ``device``, float32."""
        return Features(self.patches.to(device).float(), self.whole.to(device).float())


class DinoEncoder:
    """A frozen DINOv2 model from transformers, with or without registers.

    ``identity``: sha256 over the weights, so it names the network and not its file. ``patch``: px
    a cell; ``width``: of one layer; ``layers``: the hidden states that make a patch's features.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int] | None = None) -> None:
        config: Any = model.config
        self.model = model.eval().requires_grad_(False)
        self.depth = int(config.num_hidden_layers)
        self.patch = int(config.patch_size)
        self.width = int(config.hidden_size)
        self.layers = tuple(layers) if layers else (self.depth // 2, self.depth)
        # class token first, then registers (if any), then patches
        self.extra = 1 + int(getattr(config, "num_register_tokens", 0))
        self.identity = weights_identity(model)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        layers: Sequence[int] | None = None,
    ) -> Self:
        """Load a hub id or a local folder.

        Raises ConfigError if it cannot be loaded or is no DINOv2 model.
        """
        from transformers import AutoConfig, AutoModel

        name = str(source)
        try:
            config = AutoConfig.from_pretrained(name)
            kind = config.model_type
            if kind not in MODEL_TYPES:
                raise ConfigError(
                    f"dino_encoder {name!r} is a {kind} model, not DINOv2",
                    hint="Name a Dinov2Model or Dinov2WithRegistersModel, as facebook/dinov2-base.",
                )
            stored: torch.dtype | None = getattr(config, "dtype", None)
            # to load in another dtype than torch's default makes that every thread's default
            wide = torch.float32 if stored else "auto"
            model = library.from_pretrained(AutoModel, name, dtype=wide)
            if stored is not None:
                model.to(stored)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise ConfigError(
                f"dino_encoder {name!r} cannot be loaded: {faults.first_line(error)}",
                hint="Check the path, or fetch it with `hf download` while online.",
            ) from error
        encoder = cls(model, layers)
        model.to(device=device, dtype=dtype)
        return encoder

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    def features(self, rgb: Tensor, grid: Grid | None = None) -> Features:
        """Encode (N, 3, H, W), resized so that each cell of ``grid`` is one patch; no gradient.

        ``grid`` defaults to the picture's own shape with PICTURE_CELLS on the longer side.
        """
        with torch.no_grad():
            grid = grid or fit_grid(rgb.shape[-2], rgb.shape[-1])
            states = self._states(rgb, grid)
            chosen = [self._patches(states[i], grid) for i in self.layers]
            whole = self._norm(states[-1][:, 0])
        return Features(torch.cat(chosen, -1).float(), whole.float())

    def layer_features(self, rgb: Tensor, grid: Grid | None = None, count: int = 4) -> list[Tensor]:
        """``count`` layers, evenly spread up to the last, each (N, rows, columns, W).

        Differentiable with respect to ``rgb``: what guidance takes its gradient through.
        """
        grid = grid or fit_grid(rgb.shape[-2], rgb.shape[-1])
        states = self._states(rgb, grid)
        count = min(count, self.depth)
        places = [round(self.depth * (i + 1) / count) for i in range(count)]
        return [self._patches(states[i], grid).float() for i in places]

    def _states(self, rgb: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Embedding and the output of every block, each (N, extra + rows * columns, W)."""
        pixels = rgb.to(self.device)
        size = (grid[0] * self.patch, grid[1] * self.patch)
        if tuple(pixels.shape[-2:]) != size:
            pixels = resample(pixels, size).clamp(0, 1)
        mean, std = (
            torch.tensor(v, device=pixels.device, dtype=torch.float32)[:, None, None]
            for v in (MEAN, STD)
        )
        pixels = (pixels - mean) / std
        output = self.model(pixels.to(next(self.model.parameters())), output_hidden_states=True)
        states: tuple[Tensor, ...] = output.hidden_states
        return states

    def _patches(self, state: Tensor, grid: Grid) -> Tensor:
        """Without class token and registers, back in the picture's shape."""
        normed = self._norm(state[:, self.extra :])
        return normed.reshape(normed.shape[0], *grid, self.width)

    def _norm(self, state: Tensor) -> Tensor:
        """The model's own last LayerNorm, on every layer alike, so that none drowns the others."""
        normed: Tensor = self.model.layernorm(state)  # type: ignore[operator]
        return normed


def weights_identity(model: nn.Module) -> str:
    """``sha256:`` and the hash over every weight, in the dtype they have.

    Names are left out and the order is by content: transformers renames layers between versions,
    and an adapter must find its encoder again.
    """
    parts = []
    for tensor in model.state_dict().values():
        raw = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8)
        head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
        parts.append(hashlib.sha256(head + raw.numpy().tobytes()).digest())
    return f"sha256:{hashlib.sha256(b''.join(sorted(parts))).hexdigest()}"


def fit_grid(height: int, width: int, longest: int = PICTURE_CELLS) -> Grid:
    """The grid nearest to a picture's shape with ``longest`` cells on its longer side."""
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


# --- windows of a picture -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """A tile with its surroundings, in whole cells.

    ``box``: what is cut from the picture; ``grid``: cells over it; ``top``, ``left``: cells of
    surroundings before the tile; ``tile``: cells of the tile itself.
    """

    box: Box
    grid: Grid
    top: int
    left: int
    tile: Grid


def window(box: Box, tile: Grid, margin: int, height: int, width: int) -> Window:
    """Put up to ``margin`` cells of surroundings around ``box``, as far as the picture reaches."""
    top, left, bottom, right = box
    cell_h, cell_w = (bottom - top) / tile[0], (right - left) / tile[1]

    def cells(room: float, cell: float) -> int:
        return max(0, min(margin, math.floor(room / cell + 1e-6)))

    up, down = cells(top, cell_h), cells(height - bottom, cell_h)
    before, after = cells(left, cell_w), cells(width - right, cell_w)
    enlarged = (
        top - up * cell_h,
        left - before * cell_w,
        bottom + down * cell_h,
        right + after * cell_w,
    )
    grid = (tile[0] + up + down, tile[1] + before + after)
    return Window(enlarged, grid, up, before, tile)


def encode_tiles(
    encoder: DinoEncoder,
    picture: Tensor,
    boxes: Sequence[Box],
    tile: Grid,
    *,
    margin: int = 2,
    cache: "FeatureCache | None" = None,
    content: str = "",
) -> Features:
    """Features of every tile, seen with its surroundings, cut back to the tile.

    ``picture`` (1, 3, H, W); ``boxes`` in its pixels, all with the same ``tile`` grid of cells.
    With a ``cache``, ``content`` is the hash that names the picture. Windows of one shape go
    through the encoder together. Result: N = len(boxes), float32 on the encoder's device.
    """
    height, width = picture.shape[-2:]
    windows = [window(box, tile, margin, height, width) for box in boxes]
    found: dict[int, Features] = {}
    missing: dict[Grid, list[int]] = {}
    for i, view in enumerate(windows):
        key = _key(encoder, content, view)
        hit = cache.get(key) if cache else None
        if hit is not None:
            found[i] = hit.to(encoder.device)
        else:
            missing.setdefault(view.grid, []).append(i)
    for grid, indices in missing.items():
        size = (grid[0] * encoder.patch, grid[1] * encoder.patch)
        views = torch.cat([resample(picture, size, box=windows[i].box) for i in indices]).clamp(
            0, 1
        )
        seen = _stored(encoder.features(views, grid))
        for n, i in enumerate(indices):
            view = windows[i]
            rows, columns = (
                slice(view.top, view.top + tile[0]),
                slice(view.left, view.left + tile[1]),
            )
            found[i] = Features(seen.patches[n : n + 1, rows, columns], seen.whole[n : n + 1])
            if cache:
                cache.put(_key(encoder, content, view), found[i])
    order = [found[i] for i in range(len(boxes))]
    return Features(torch.cat([f.patches for f in order]), torch.cat([f.whole for f in order]))


def encode_picture(
    encoder: DinoEncoder,
    picture: Tensor,
    *,
    cache: "FeatureCache | None" = None,
    content: str = "",
) -> Features:
    """Features of the picture (1, 3, H, W) as a whole, PICTURE_CELLS on its longer side."""
    height, width = picture.shape[-2:]
    grid = fit_grid(height, width)
    view = Window((0.0, 0.0, float(height), float(width)), grid, 0, 0, grid)
    key = _key(encoder, content, view)
    hit = cache.get(key) if cache else None
    if hit is not None:
        return hit.to(encoder.device)
    seen = _stored(encoder.features(picture, grid))
    if cache:
        cache.put(key, seen)
    return seen


def _stored(features: Features) -> Features:
    """As the cache would give them back, so that a hit and a miss lead to the same bytes."""
    return Features(features.patches.half().float(), features.whole.half().float())


def _key(encoder: DinoEncoder, content: str, view: Window) -> str:
    """The hash of everything that decides a window's features."""
    settings = [1, encoder.identity, encoder.layers, content, asdict(view)]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


# --- drift ----------------------------------------------------------------------------------


def drift_map(a: Features, b: Features) -> Tensor:
    """1 - cosine of the patch features, by cell: (N, rows, columns), 0 (alike) to 2."""
    apart = 1 - F.cosine_similarity(a.patches.float(), b.patches.float(), dim=-1)
    return apart.clamp(0, 2)  # rounding may leave what is alike 1e-7 below 0


def drift(a: Features, b: Features) -> Tensor:
    """1 - mean cosine of the patch features: (N,), 0 (alike) to 2."""
    return drift_map(a, b).mean((1, 2))


# --- cache ----------------------------------------------------------------------------------


class FeatureCache:
    """Features on disk under a key, at most ``max_bytes`` of them; stored as float16."""

    def __init__(self, folder: Path, max_bytes: int = 256 << 20) -> None:
        self._tensors = TensorCache(folder, max_bytes)

    def get(self, key: str) -> Features | None:
        """The features stored under ``key``, and None if there are none."""
        found = self._tensors.get(key)
        if found is None or found.keys() != {"patches", "whole"}:
            return None
        return Features(found["patches"].float(), found["whole"].float())

    def put(self, key: str, features: Features) -> None:
        """Store features; a disk that is full or read-only costs the cache and nothing else."""
        self._tensors.put(key, {"patches": features.patches.half(), "whole": features.whole.half()})
