"""Weights that lie in host memory and visit the device only while their layer runs.

With a GPU the copies run on a stream of their own, from pinned memory, ahead of the layers that
need them. Without one the layers take their tensors from where they lie, in the same order.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AHEAD = 1
"""Blocks that are fetched while another runs."""
ALIGNED = 256
"""Bytes at whose multiples tensors begin, as the allocator has it: kernels rely on it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a layer: whose it is, by which name, and which bytes of its unit's it is."""

    owner: nn.Module
    name: str
    start: int
    end: int
    dtype: torch.dtype
    shape: torch.Size

    def put(self, tensor: Tensor) -> None:
        """Let the layer have ``tensor``."""
        # past nn.Module's own setting, which takes no tensor of inference mode for a parameter
        if self.name in self.owner._parameters:
            held = nn.Parameter(tensor, requires_grad=False)
            self.owner._parameters[self.name] = held
        else:
            self.owner._buffers[self.name] = tensor

    def put_from(self, whole: Tensor) -> None:
        """Let the layer have its part of the unit's bytes."""
        self.put(whole[self.start : self.end].view(self.dtype).view(self.shape))

    def vacate(self, device: torch.device) -> None:
        """Let the layer have nothing."""
        self.put(torch.empty(0, dtype=self.dtype, device=device))


@dataclass(frozen=True, slots=True)
class Unit:
    """What is brought to the device at once: its tensors' bytes in host memory, one after another.

    One copy brings them all.
    """

    host: Tensor
    slots: tuple[Slot, ...]


class Stream:
    """Brings the tensors of ``units`` to ``device`` in turn and takes them away again.

    ``units`` in the order in which they run. ``ahead`` of them are fetched beside the one that
    runs. ``alone`` says that a unit's own tensors count and those of modules inside it do not.
    """

    def __init__(
        self,
        units: Sequence[nn.Module],
        device: torch.device,
        *,
        ahead: int = AHEAD,
        alone: bool = False,
    ) -> None:
        self.device, self.ahead = device, ahead
        self._units: list[Unit] = []
        self._there: dict[int, tuple[Tensor, torch.cuda.Event | None]] = {}
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._hooks: list[Any] = []
        self.most = 0
        """Most units that were on the device at once."""
        pinned: list[int] = []
        self._unpin = weakref.finalize(self, _unpin, pinned)
        for i, module in enumerate(units):
            unit = _take(module, alone=alone)  # its tensors leave the device before the next's
            if self._copies is not None and unit.host.numel():
                _pin(unit.host)
                pinned.append(unit.host.data_ptr())
            for slot in unit.slots:
                slot.vacate(device)
            self._units.append(unit)
            self._hooks += [
                module.register_forward_pre_hook(lambda _, given, i=i: self._enter(i)),
                module.register_forward_hook(
                    lambda _, given, out, i=i: self._leave(i), always_call=True
                ),
            ]

    def close(self) -> None:
        """Give every layer its tensors back, where they lie now, and let it run by itself."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._there.clear()
        if self._copies is not None:
            self._copies.synchronize()
        self._unpin()
        for unit in self._units:
            for slot in unit.slots:
                slot.put_from(unit.host)

    def _enter(self, i: int) -> None:
        """Have unit ``i`` there, and begin to fetch those that run next."""
        self._fetch(i)
        for following in range(i + 1, i + 1 + self.ahead):
            self._fetch(following % len(self._units))
        whole, event = self._there[i]
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
        for slot in self._units[i].slots:
            slot.put_from(whole)

    def _leave(self, i: int) -> None:
        """Forget unit ``i``'s copy; the device's memory goes back once it has run there too."""
        there = self._there.pop(i, None)
        if self._copies is not None and there is not None:
            there[0].record_stream(torch.cuda.current_stream(self.device))
        for slot in self._units[i].slots:
            slot.vacate(self.device)

    def _fetch(self, i: int) -> None:
        if i in self._there:
            return
        host = self._units[i].host
        if self._copies is None:
            self._there[i] = (host.to(self.device), None)
        else:
            with torch.cuda.stream(self._copies):
                whole = host.to(self.device, non_blocking=True)
                self._there[i] = (whole, self._copies.record_event())
        self.most = max(self.most, len(self._there))


def _take(module: nn.Module, *, alone: bool) -> Unit:
    """A unit's tensors, copied to host memory."""
    slots, tensors, end = [], [], 0
    for owner in [module] if alone else list(module.modules()):
        named = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
        for name, tensor in named:
            start = -(-end // ALIGNED) * ALIGNED
            end = start + tensor.numel() * tensor.element_size()
            slots.append(Slot(owner, name, start, end, tensor.dtype, tensor.shape))
            tensors.append(tensor)
    host = torch.empty(end, dtype=torch.uint8)
    for slot, tensor in zip(slots, tensors, strict=True):
        bytes_of = tensor.detach().contiguous().flatten().view(torch.uint8)
        host[slot.start : slot.end].copy_(bytes_of)
    return Unit(host, tuple(slots))


def _pin(host: Tensor) -> None:
    """Lock a tensor's memory where it lies, so that a GPU can fetch it by itself.

    torch's own pinned memory comes in powers of two, which would take half as much again.
    """
    runtime: Any = torch.cuda.cudart()
    torch.cuda.check_error(int(runtime.cudaHostRegister(host.data_ptr(), host.numel(), 0)))


def _unpin(pointers: list[int]) -> None:
    runtime: Any = torch.cuda.cudart() if pointers else None
    for pointer in pointers:
        runtime.cudaHostUnregister(pointer)
    pointers.clear()


def leaves(module: nn.Module) -> list[nn.Module]:
    """Every module that has tensors of its own, outer ones first."""
    return [
        inner
        for inner in module.modules()
        if any(True for _ in inner.parameters(recurse=False))
        or any(True for _ in inner.buffers(recurse=False))
    ]
