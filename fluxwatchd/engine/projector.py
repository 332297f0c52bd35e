"""The trained adapter that turns DINO features into text states with a place in the tile."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxwatchd.engine import eyeplaces, faults
from fluxwatchd.engine.dino import DinoEncoder, Features
from fluxwatchd.engine.flux import Tokens
from fluxwatchd.engine.resample import Grid
from fluxwatchd.errors import ConfigError

LENGTH_MULTIPLE = 8
"""Token counts are padded to it: cuDNN attention refuses some other lengths in training."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What a projector was made for; stored in its file and compared when it is loaded.

    ``model``: nano, schnell or dev. ``model_width``: of its text states. ``encoder``: identity,
    ``encoder_name``: for people. ``layers``: hidden states that were concatenated. ``grid``: most
    cells a side of a tile; ``cell``: side of a cell in image tokens, while ``grid`` is not reached;
    ``margin``: cells of surroundings. ``hidden``: width inside the MLP.
    """

    model: str
    model_width: int
    encoder: str
    encoder_name: str
    encoder_width: int
    layers: tuple[int, ...]
    grid: int = 16
    cell: int = 2
    margin: int = 2
    hidden: int = 512

    def tile_grid(self, tokens: Grid) -> Grid:
        """DINO cells for a tile of so many image tokens (rows, columns)."""
        rows, columns = (max(1, min(self.grid, round(n / self.cell))) for n in tokens)
        return rows, columns


class Projector(nn.Module):
    """DINO features -> text states: LayerNorm, then a two-layer MLP; one more for the whole."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.spec = spec
        features = spec.encoder_width * len(spec.layers)
        self.norm = nn.LayerNorm(features)
        self.mlp = nn.Sequential(
            nn.Linear(features, spec.hidden), nn.GELU(), nn.Linear(spec.hidden, spec.model_width)
        )
        self.whole = nn.Sequential(
            nn.LayerNorm(spec.encoder_width), nn.Linear(spec.encoder_width, spec.model_width)
        )

    def forward(self, patches: Tensor, whole: Tensor) -> Tensor:
        """(N, rows, columns, F), (N, W) -> (N, K, model_width).

        One token for the whole, then one a cell in reading order, then zeros up to a multiple of
        LENGTH_MULTIPLE.
        """
        cells = self.mlp(self.norm(patches.flatten(1, 2)))
        states = torch.cat([self.whole(whole)[:, None], cells], 1)
        return F.pad(states, (0, 0, 0, -states.shape[1] % LENGTH_MULTIPLE))

    def tokens(self, features: Features, grid: Grid) -> Tokens:
        """Tokens for tiles of ``grid`` image tokens; more cells than ``spec.grid`` are pooled."""
        patches = features.patches
        most = self.spec.grid
        if max(patches.shape[1:3]) > most:
            size = (min(most, patches.shape[1]), min(most, patches.shape[2]))
            patches = F.adaptive_avg_pool2d(patches.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
        weight = self.norm.weight
        states = self(patches.to(weight), features.whole.to(weight))
        ids = token_ids(grid, (patches.shape[1], patches.shape[2]), states.shape[1], weight.device)
        return Tokens(states, ids)

    def save(self, path: Path, lora: dict[str, Tensor] | None = None) -> None:
        """Write the weights (float16) and the spec, with a LoRA beside them if there is one."""
        tensors = {f"projector.{k}": v for k, v in self.state_dict().items()}
        tensors |= {f"lora.{k}": v for k, v in (lora or {}).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(
            {k: v.detach().half().contiguous().cpu() for k, v in tensors.items()},
            path,
            metadata={eyeplaces.ADAPTER: json.dumps(asdict(self.spec))},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Read what :meth:`save` wrote; ``path`` may be the folder that holds it.

        Raises ConfigError if the file is no DINO adapter. Call :meth:`check` before using it.
        """
        file, header = _open_adapter(path)
        try:
            fields = json.loads(header)
            spec = AdapterSpec(**(fields | {"layers": tuple(fields["layers"])}))
            adapter = cls(spec)
            adapter.load_state_dict(_with_prefix(file, "projector."))
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"dino_adapter {str(path)!r} has a broken layout: {faults.first_line(error)}",
                hint="Train it again with `fluxwatchd train adapter`.",
            ) from error
        return adapter.to(device).eval().requires_grad_(False)

    def check(self, *, model: str, model_width: int, encoder: DinoEncoder) -> None:
        """Raise ConfigError unless this adapter is for ``model`` and ``encoder``."""
        spec = self.spec
        found = {
            "model": (spec.model, model),
            "width of the text states": (spec.model_width, model_width),
            "DINO encoder": (f"{spec.encoder_name} ({spec.encoder})", encoder.identity),
            "encoder width": (spec.encoder_width, encoder.width),
        }
        fits = {
            "model": spec.model == model,
            "width of the text states": spec.model_width == model_width,
            "DINO encoder": spec.encoder == encoder.identity,
            "encoder width": spec.encoder_width == encoder.width,
        }
        for what, good in fits.items():
            if not good:
                made, here = found[what]
                raise eyeplaces.misfit(what, made, here)


def load_lora(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The LoRA inside an adapter's file, in peft's names; empty if it has none."""
    return _with_prefix(_open_adapter(path)[0], "lora.")


def token_ids(grid: Grid, cells: Grid, count: int, device: torch.device | str) -> Tensor:
    """(count, 3): 0, row, column of every DINO token, in image tokens of a tile of ``grid``.

    A cell sits at its centre, so positions have fractions; the whole, and the padding behind the
    cells, at the tile's centre.
    """
    ids = torch.zeros(count, 3, device=device, dtype=torch.float32)
    ids[:, 1], ids[:, 2] = (grid[0] - 1) / 2, (grid[1] - 1) / 2
    rows, columns = cells
    places = ids[1 : 1 + rows * columns].view(rows, columns, 3)
    steps = torch.arange(max(cells), device=device) + 0.5
    places[..., 1] = (steps[:rows] * grid[0] / rows - 0.5)[:, None]
    places[..., 2] = (steps[:columns] * grid[1] / columns - 0.5)[None]
    return ids


def _open_adapter(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """The adapter's file and its spec as JSON."""
    file = Path(path)
    if file.is_dir():
        file = file / eyeplaces.ADAPTER_FILE
    try:
        with safetensors.safe_open(file, "pt") as opened:
            header = (opened.metadata() or {}).get(eyeplaces.ADAPTER)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"dino_adapter {str(path)!r} cannot be read: {faults.first_line(error)}",
            hint="Name a file that `fluxwatchd train adapter` wrote.",
        ) from error
    if header is None:
        raise ConfigError(
            f"dino_adapter {str(path)!r} is no DINO adapter",
            hint="Name a file that `fluxwatchd train adapter` wrote.",
        )
    return file, header


def _with_prefix(file: Path, prefix: str) -> dict[str, Tensor]:
    with safetensors.safe_open(file, "pt") as opened:
        names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): opened.get_tensor(name).float() for name in names}
