"""Copies between host and GPU that nobody waits for: the device goes on with what is queued."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxwatchd.engine.tiles import Grid

Floats = NDArray[np.float32]

MOST_LOCKED = 1 << 30
"""Bytes of host memory that a copy may lock in place; a larger one is waited for."""


def locked(values: Floats | Tensor, device: torch.device) -> Tensor:
    """``values`` in host memory from which a GPU copies by itself; for a CPU as they are."""
    tensor = torch.as_tensor(values)
    if device.type != "cuda" or tensor.device.type != "cpu" or tensor.nbytes > MOST_LOCKED:
        return tensor
    return tensor.pin_memory()


def send(values: Floats | Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``, in turn behind what is queued there."""
    return locked(values, device).to(device, non_blocking=True)


def weights(grid: Grid, per: int, device: torch.device) -> Iterator[Tensor]:
    """Blend weights (height * per, width * per) of every tile, as :meth:`Grid.weights` has them."""
    rows, columns = (send(axis.weights(per), device) for axis in (grid.rows, grid.columns))
    return (torch.outer(rows[tile.row], columns[tile.column]) for tile in grid.tiles)


class Arriving:
    """A tensor on its way to the host, behind what is queued on its device."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type != "cuda" or tensor.nbytes > MOST_LOCKED:
            self._host = tensor.cpu()
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event(blocking=True)
        self._event.record(torch.cuda.current_stream(tensor.device))

    def array(self) -> Floats:
        """The values, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        found: Floats = self._host.numpy()
        return found
