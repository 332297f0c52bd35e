"""LoRA files (Hu et al. 2021, arXiv:2106.09685) in the ways that trainers name their tensors.

``W' = W + scale * alpha / r * B A``: A is "down" (r, in), B is "up" (out, r). Known are the names
of kohya (``lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight``), those of diffusers and peft
(``transformer.transformer_blocks.0.attn.to_q.lora_A.weight``), and Black Forest Labs' layers with
either ending, also as x-flux writes them (``double_blocks.0.processor.qkv_lora1.down.weight``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxwatchd.engine import contents, layouts, places, weights
from fluxwatchd.engine.layouts import SWAPPED
from fluxwatchd.engine.weights import State, Weight
from fluxwatchd.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
"""The transformer's weights in diffusers' names with their shapes."""

ENDINGS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "alpha": "alpha",
}
PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lora_transformer_",
)
TEXT = ("lora_te", "text_encoder", "text_encoders", "clip_l.", "t5xxl.")
"""What names of a text encoder's layers begin with."""
X_FLUX = re.compile(
    r"(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight"
)
X_LAYERS = {
    ("double", "qkv", "1"): "img_attn.qkv",
    ("double", "qkv", "2"): "txt_attn.qkv",
    ("double", "proj", "1"): "img_attn.proj",
    ("double", "proj", "2"): "txt_attn.proj",
    ("single", "qkv", ""): "linear1",
}


@dataclass(slots=True)
class Pair:
    """One layer's tensors, gathered while a file is read."""

    down: Weight | None = None
    up: Weight | None = None
    alpha: Weight | None = None


@dataclass(frozen=True, slots=True)
class Lora:
    """A file, how much of it, and its layers by the names that the file uses, prefix gone.

    ``alpha``: what applies to layers that say none, None for the rank itself; ``alphas``: the same
    by patterns of layers' names, as peft has them. ``skipped``: how many tensors are a text
    encoder's, which are not applied.
    """

    file: Path
    scale: float
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    skipped: int = 0


def read(name: str, scale: float) -> Lora:
    """A LoRA's file by its path, its folder, or its hub id. Raises ConfigError."""
    file = places.find_lora(name)
    pairs: dict[str, Pair] = {}
    skipped = 0
    for key, weight in weights.open_files(file).items():
        if key.startswith(TEXT):
            skipped += 1
            continue
        layer, part = _parse(key, file)
        setattr(pairs.setdefault(layer, Pair()), part, weight)
    for layer, pair in pairs.items():
        if pair.down is None or pair.up is None:
            raise ConfigError(f"LoRA {file} has but a half of {layer}", hint="Fetch it again.")
    if not pairs:
        raise _unfit(file, "it has no layer of a transformer")
    settings = _settings(file)
    return Lora(
        file,
        scale,
        pairs,
        alpha=settings.get("lora_alpha"),
        alphas=settings.get("alpha_pattern") or {},
        rank_stabilised=bool(settings.get("use_rslora")),
        skipped=skipped,
    )


def _parse(key: str, file: Path) -> tuple[str, str]:
    """A tensor's layer, without prefix, and what it is of it: down, up or alpha."""
    found = X_FLUX.fullmatch(key)
    if found and (found[1], found[3], found[4]) in X_LAYERS:
        layer = X_LAYERS[found[1], found[3], found[4]]
        return f"{found[1]}_blocks.{found[2]}.{layer}", found[5]
    for ending, part in ENDINGS.items():
        if key.endswith(f".{ending}"):
            layer = key.removesuffix(f".{ending}")
            for prefix in PREFIXES:
                layer = layer.removeprefix(prefix)
            return layer, part
    raise _unfit(file, f"{key} is of a kind that is not known (only plain LoRA is)")


def _settings(file: Path) -> Mapping[str, Any]:
    """peft's settings, from the file's metadata (as diffusers writes them) or beside it."""
    said = contents.read(file).metadata.get("lora_adapter_metadata")
    beside = file.with_name("adapter_config.json")
    try:
        if said:
            given = json.loads(said)
            start = "transformer."
            return {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
        return dict(json.loads(beside.read_text())) if beside.is_file() else {}
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"LoRA {file} has broken settings: {error}", hint="Fetch it again."
        ) from error


# --- layers ---------------------------------------------------------------------------------


def apply(lora: Lora, state: State) -> State:
    """``state``, in diffusers' names, with the LoRA's change on every weight that it is for.

    Nothing is computed yet: each change is added when its weight is read. Raises ConfigError if a
    layer is not there or has another size.
    """
    known = _Layers({name: weight.shape for name, weight in state.items()})
    changed = dict(state)
    for layer, pair in lora.pairs.items():
        down, up = _whole(pair)
        found = list(known.find(layer, up.shape[0]))
        if not found:
            raise _unfit(lora.file, f"FLUX.1 has no layer {layer}")
        for name, start, end, swapped in found:
            own = replace(up.part(start, end), swapped=swapped)
            target = changed[name]
            if target.shape != (end - start, down.shape[1]):
                raise _unfit(
                    lora.file,
                    f"{layer} has shape {(end - start, down.shape[1])}, not {target.shape}",
                )
            delta = partial(_change, down, own, _factor(lora, layer, pair))
            changed[name] = replace(target, deltas=(*target.deltas, delta))
    return changed


class _Layers:
    """Finds a transformer's weights by any of the names that a LoRA may use for its layers."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._inner = shapes["x_embedder.weight"][0]
        blocks = {
            kind: layouts.count(shapes, f"{start}.")
            for kind, start in (
                ("double", "transformer_blocks"),
                ("single", "single_transformer_blocks"),
            )
        }
        self._theirs = [*layouts.WHOLE]
        for kind, names in (("double", layouts.DOUBLE), ("single", layouts.SINGLE)):
            self._theirs += [f"{kind}_blocks.{i}.{n}" for i in range(blocks[kind]) for n in names]
        ours = [n.removesuffix(".weight") for n in shapes if n.endswith(".weight")]
        self._flat = {name.replace(".", "_"): name for name in (*self._theirs, *ours)}

    def find(self, layer: str, rows: int) -> Iterator[tuple[str, int, int, bool]]:
        """Weights in diffusers' names, with the rows of the LoRA that are theirs; none if unknown.

        The last of the four says that the halves of the rows change places.
        """
        name = self._flat.get(layer.replace(".", "_"))
        if name is None:
            return
        if f"{name}.weight" in self._shapes and name not in self._theirs:
            yield f"{name}.weight", 0, rows, False
            return
        places = list(layouts.pieces(name, rows, self._inner))
        if len(places) == 4 and rows == 3 * self._inner:  # x-flux: query, key and value alone
            places = places[:3]
        for place, start, end in places:
            yield f"{place}.weight", start, end, name in SWAPPED


def _whole(pair: Pair) -> tuple[Weight, Weight]:
    """Down and up; of a convolution of 1 x 1 as of a linear layer."""
    assert pair.down is not None and pair.up is not None  # noqa: S101 (read looked)
    return _flat(pair.down), _flat(pair.up)


def _flat(weight: Weight) -> Weight:
    rows, columns = weight.shape[:2]

    def read(start: int, end: int) -> Tensor:
        return weight.source(start, end).reshape(end - start, columns)

    return Weight((rows, columns), read)


def _factor(lora: Lora, layer: str, pair: Pair) -> float:
    """scale * alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023)."""
    assert pair.down is not None  # noqa: S101 (read looked)
    rank = pair.down.shape[0]
    alpha = rank if lora.alpha is None else lora.alpha
    for pattern, value in lora.alphas.items():
        if re.fullmatch(rf"(.*\.)?{pattern}", layer):
            alpha = value
    if pair.alpha is not None:
        alpha = float(pair.alpha.read())
    return lora.scale * alpha / (rank**0.5 if lora.rank_stabilised else rank)


def _change(down: Weight, up: Weight, factor: float) -> Tensor:
    """What is added to a weight, float32."""
    return factor * (up.read().float() @ down.read().float())


def _unfit(file: Path, why: str) -> ConfigError:
    return ConfigError(
        f"LoRA {file} does not fit: {why}",
        hint="Name a LoRA for FLUX.1, or take it out of lora.",
    )
