"""Weights that are read only when they are needed, whatever they are stored as.

A whole FLUX.1 is read tensor by tensor, so that the host never holds more than one of them twice.
Float8 files of ComfyUI bring one scale for a tensor (``scale_weight``, ``weight_scale``); the
``scale_input`` beside it is for products in float8, which are not done here. GGUF blocks are made
numbers again by llama.cpp's own ``gguf`` package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fluxwatchd.engine import contents
from fluxwatchd.engine.faults import first_line
from fluxwatchd.errors import ConfigError

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
SCALES = ("scale_weight", "weight_scale")
BESIDE = (*SCALES, "scale_input", "input_scale", "comfy_quant")
"""What stands beside a float8 weight under its layer's name."""
MARK = "scaled_fp8"
"""An empty tensor by which ComfyUI's files say that they have scales."""

Read = Callable[[int, int], Tensor]
"""Rows from and to, as (rows, ...) in any floating dtype but float8."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor that is not read yet: ``shape`` of it, and the rows of the file's that it is.

    ``swapped``: the second half of the rows comes first. ``deltas`` are added in float32.
    """

    shape: tuple[int, ...]
    source: Read
    first: int = 0
    swapped: bool = False
    deltas: tuple[Callable[[], Tensor], ...] = ()

    def part(self, start: int, end: int) -> Weight:
        """Rows ``start`` to ``end`` alone."""
        return replace(self, shape=(end - start, *self.shape[1:]), first=self.first + start)

    def read(self) -> Tensor:
        """The tensor; float32 where something is added to it."""
        rows = self.shape[0] if self.shape else 1
        tensor = self.source(self.first, self.first + rows).reshape(self.shape)
        if self.swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if self.deltas:
            tensor = tensor.float()
            for delta in self.deltas:
                tensor = tensor + delta()
        return tensor


State = dict[str, Weight]


def held(tensor: Tensor) -> Weight:
    """A tensor that is in memory already."""
    rows = tensor if tensor.ndim else tensor[None]
    return Weight(tuple(tensor.shape), lambda start, end: rows[start:end])


def open_files(files: Mapping[str, Path] | Path) -> State:
    """The weights of one file, or of all shards together. Raises ConfigError."""
    if isinstance(files, Path):
        return _open(files)
    state: State = {}
    for file in files.values():
        state |= _open(file)
    return state


def _open(path: Path) -> State:
    """One file's weights, without another program's prefix and without what is no weight."""
    listed = contents.read(path)
    state = _gguf(path) if path.suffix.lower() == ".gguf" else _safetensors(path, listed)
    return {contents.bare(name): weight for name, weight in state.items()}


# --- safetensors ----------------------------------------------------------------------------


def _safetensors(path: Path, listed: contents.Contents) -> State:
    try:
        opened = safetensors.safe_open(path, "pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read: {first_line(error)}", hint="Fetch it again."
        ) from error
    state: State = {}
    for name, shape in listed.shapes.items():
        layer, _, last = name.rpartition(".")
        if last in {*BESIDE, MARK}:
            continue
        if last in {"weight", "bias", "scale"} and listed.dtypes[name] not in FLOATS:
            raise ConfigError(
                f"{path} holds {name} as {listed.dtypes[name]}, which is not known here",
                hint="Use bfloat16, float8 (e4m3fn) or GGUF weights.",
            )
        scale = None
        if last == "weight":
            scale = next((f"{layer}.{s}" for s in SCALES if f"{layer}.{s}" in listed.shapes), None)
        state[name] = Weight(shape, _reader(opened, name, shape, scale))
    return state


def _reader(opened: Any, name: str, shape: tuple[int, ...], scale: str | None) -> Read:
    """How to get rows of a tensor; float8 becomes bfloat16, or float32 times its scale."""

    def read(start: int, end: int) -> Tensor:
        whole = not shape or (start, end) == (0, shape[0])
        tensor: Tensor = opened.get_tensor(name) if whole else opened.get_slice(name)[start:end]
        if scale is not None:
            factor: Tensor = opened.get_tensor(scale).float()
            if factor.numel() > 1:  # one a row
                factor = factor.reshape(shape[0], *[1] * (len(shape) - 1))[start:end]
            return tensor.float() * factor
        return tensor.bfloat16() if tensor.dtype in FLOAT8 else tensor

    return read


# --- GGUF -----------------------------------------------------------------------------------


def _gguf(path: Path) -> State:
    return {
        tensor.name: Weight(
            tuple(int(side) for side in reversed(tensor.shape)), _gguf_reader(tensor, path)
        )
        for tensor in contents.open_gguf(path).tensors
    }


def _gguf_reader(tensor: Any, path: Path) -> Read:
    """How to get rows of a GGUF tensor, as float32."""
    from gguf import quants

    def read(start: int, end: int) -> Tensor:
        rows = np.ascontiguousarray(tensor.data[start:end])
        try:
            return torch.from_numpy(np.array(quants.dequantize(rows, tensor.tensor_type)))
        except NotImplementedError as error:
            raise ConfigError(
                f"{path} holds {tensor.tensor_type.name}, which cannot be read",
                hint="Use one of Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, F16 or BF16.",
            ) from error

    return read


def tensors(state: State) -> dict[str, Tensor]:
    """Everything of a small state in memory at once."""
    return {name: weight.read() for name, weight in state.items()}
