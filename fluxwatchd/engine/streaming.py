"""Weights that lie in host memory and visit the device only while their layer runs.

With a GPU the copies run on a stream of their own, from pinned memory, ahead of the layers that
need them. Without one the layers take their tensors from where they lie, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AHEAD = 1
"""Blocks that are fetched while another runs."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a layer: whose it is, by which name, and where it lies in host memory."""

    owner: nn.Module
    name: str
    host: Tensor

    def put(self, tensor: Tensor) -> None:
        """Let the layer have ``tensor``."""
        # past nn.Module's own setting, which takes no tensor of inference mode for a parameter
        if self.name in self.owner._parameters:
            held = nn.Parameter(tensor, requires_grad=False)
            self.owner._parameters[self.name] = held
        else:
            self.owner._buffers[self.name] = tensor


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
        self._slots: list[list[Slot]] = []
        self._there: dict[int, tuple[list[Tensor], torch.cuda.Event | None]] = {}
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._hooks: list[Any] = []
        self.most = 0
        """Most units that were on the device at once."""
        for i, unit in enumerate(units):
            slots = _take(unit, device, alone=alone)
            _vacate(slots, device)  # before the next: not all are there twice, pinned and not
            self._slots.append(slots)
            self._hooks += [
                unit.register_forward_pre_hook(lambda _, given, i=i: self._enter(i)),
                unit.register_forward_hook(
                    lambda _, given, out, i=i: self._leave(i), always_call=True
                ),
            ]

    def close(self) -> None:
        """Give every layer its tensors back, where they lie now, and let it run by itself."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._there.clear()
        for slots in self._slots:
            for slot in slots:
                slot.put(slot.host)

    def _enter(self, i: int) -> None:
        """Have unit ``i`` there, and begin to fetch those that run next."""
        self._fetch(i)
        for following in range(i + 1, i + 1 + self.ahead):
            self._fetch(following % len(self._slots))
        tensors, event = self._there[i]
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
        for slot, tensor in zip(self._slots[i], tensors, strict=True):
            slot.put(tensor)

    def _leave(self, i: int) -> None:
        """Forget unit ``i``'s copies; the device's memory goes back once it has run there too."""
        tensors, _ = self._there.pop(i, ([], None))
        if self._copies is not None:
            for tensor in tensors:
                tensor.record_stream(torch.cuda.current_stream(self.device))
        _vacate(self._slots[i], self.device)

    def _fetch(self, i: int) -> None:
        if i in self._there:
            return
        if self._copies is None:
            self._there[i] = ([slot.host.to(self.device) for slot in self._slots[i]], None)
        else:
            with torch.cuda.stream(self._copies):
                tensors = [slot.host.to(self.device, non_blocking=True) for slot in self._slots[i]]
                self._there[i] = (tensors, self._copies.record_event())
        self.most = max(self.most, len(self._there))


def _take(unit: nn.Module, device: torch.device, *, alone: bool) -> list[Slot]:
    """A unit's tensors, moved to host memory, pinned where a GPU is to fetch them."""
    slots = []
    for owner in [unit] if alone else list(unit.modules()):
        named = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
        for name, tensor in named:
            host = tensor.detach().cpu()
            if device.type == "cuda" and not host.is_pinned():
                host = host.pin_memory()
            slots.append(Slot(owner, name, host))
    return slots


def _vacate(slots: Iterable[Slot], device: torch.device) -> None:
    for slot in slots:
        slot.put(torch.empty(0, dtype=slot.host.dtype, device=device))


def leaves(module: nn.Module) -> list[nn.Module]:
    """Every module that has tensors of its own, outer ones first."""
    return [
        inner
        for inner in module.modules()
        if any(True for _ in inner.parameters(recurse=False))
        or any(True for _ in inner.buffers(recurse=False))
    ]
