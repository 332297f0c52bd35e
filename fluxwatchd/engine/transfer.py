"""Copies between host and GPU that nobody waits for: the device goes on with what is queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxwatchd.engine.tiles import Grid

Floats = NDArray[np.float32]

MOST_LOCKED = 1 << 28
"""Bytes of host memory that a copy may lock; a larger copy is waited for."""


def locked(values: Floats | Tensor, device: torch.device) -> Tensor:
    """``values`` in host memory from which a GPU copies by itself; for a CPU as they are."""
    tensor = torch.as_tensor(values)
    if device.type != "cuda" or tensor.device.type != "cpu" or tensor.nbytes > MOST_LOCKED:
        return tensor
    with suppress(RuntimeError):  # the host has no memory to lock
        return tensor.pin_memory()
    return tensor


def send(values: Floats | Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``, in turn behind what is queued there."""
    return locked(values, device).to(device, non_blocking=True)


def weights(grid: Grid, per: int, device: torch.device) -> Iterator[Tensor]:
    """Blend weights (height * per, width * per) of every tile, as :meth:`Grid.weights` has them."""
    rows, columns = (send(axis.weights(per), device) for axis in (grid.rows, grid.columns))
    return (torch.outer(rows[tile.row], columns[tile.column]) for tile in grid.tiles)


def _room_for(tensor: Tensor) -> Tensor | None:
    """Locked host memory for what lies on a GPU; None if there is none, or it is no GPU."""
    if tensor.device.type == "cuda" and tensor.nbytes <= MOST_LOCKED:
        with suppress(RuntimeError):  # the host has no memory to lock
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return None


class Arriving:
    """A tensor on its way to the host, behind what is queued on its device."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        room = _room_for(tensor)
        if room is None:
            self._host = tensor.cpu()
            return
        self._host = room
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event(blocking=True)
        self._event.record(torch.cuda.current_stream(tensor.device))

    def array(self) -> Floats:
        """The values, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        found: Floats = self._host.numpy()
        return found
