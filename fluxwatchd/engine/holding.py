"""How a transformer's weights are held, and how they are held next when memory is short."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fluxwatchd.engine import faults, fp8, kernels, plans
from fluxwatchd.engine.streaming import Stream, leaves
from fluxwatchd.errors import ConfigError, EngineLost

log = logging.getLogger(__name__)

SEQUENTIAL_FP8 = "sequential-fp8"
"""``sequential`` with the weights that an earlier plan made float8; it is never chosen outright."""
NEXT: Mapping[str, str] = {
    plans.RESIDENT: plans.FP8,
    plans.FP8: plans.STREAM_FP8,
    plans.STREAM_FP8: SEQUENTIAL_FP8,
    plans.STREAM: plans.SEQUENTIAL,
}
"""What takes less of the device, and can be made from what is in memory."""


def _nothing() -> bool:
    return False


class Holding:
    """The plan that a transformer is held by, and the next ones.

    ``lower``: whether another plan may be taken when memory is short; it may not where one was
    asked for. ``spare`` frees what other models take and says whether there was anything.
    """

    def __init__(self, device: torch.device, plan: str, *, lower: bool) -> None:
        self.device, self.plan = device, plan
        self.spare: Callable[[], bool] = _nothing
        self._lower = lower
        self._module: nn.Module | None = None
        self._stream: Stream | None = None

    @property
    def narrow(self) -> bool:
        """Whether the blocks' linear layers are held as float8."""
        return "fp8" in self.plan

    @property
    def products(self) -> bool:
        """Whether float8 layers multiply in float8, where the device can."""
        return fp8.multiplies(self.device)

    @property
    def stream(self) -> Stream | None:
        """What brings the weights to the device, where they do not stay there."""
        return self._stream

    def home(self, path: str) -> torch.device:
        """Where the tensors of the module at ``path`` lie."""
        streamed = self.plan.startswith("sequential") or (
            self.plan.startswith("stream") and fp8.BLOCKS in path
        )
        return torch.device("cpu") if streamed else self.device

    def keep(self, path: str, module: nn.Module) -> nn.Module:
        """The module to use in place of ``module``, whose own tensors have just been read."""
        if self.narrow and isinstance(module, nn.Linear) and fp8.BLOCKS in path:
            return fp8.Float8Linear(module, products=self.products)
        return module

    def attach(self, transformer: nn.Module) -> None:
        """Begin to bring the weights to the device, if the plan asks for it."""
        self._module = transformer
        if self.plan.startswith("sequential"):
            kernels.plain_blocks(transformer)  # hooks on layers are not seen by compiled blocks
        if self.plan.startswith("stream"):
            self._stream = Stream(kernels.blocks(transformer), self.device)
        elif self.plan.startswith("sequential"):
            self._stream = Stream(leaves(transformer), self.device, ahead=0, alone=True)

    def relieve(self) -> bool:
        """Free device memory: other models first, then by the next plan; False if nothing is left.

        The numbers of a picture that is under way change where the weights become float8. Raises
        EngineLost if that fails half way.
        """
        if self.spare():
            return True
        wide = not self.narrow
        if self._module is None or not self.step_down():
            return False
        try:
            if self._stream is not None:
                self._stream.close()
            if wide and self.narrow:
                fp8.squeeze(self._module, products=self.products)
            self.attach(self._module)
        except (RuntimeError, MemoryError) as error:
            raise EngineLost(
                f"the weights could not be moved: {faults.first_line(error)}",
                hint="The process ends and systemd starts it again; a smaller memory plan or "
                "model file would keep it from happening.",
            ) from error
        tidy(self.device)
        return True

    def step_down(self) -> bool:
        """Turn to the next plan, for weights that are yet to be read; False if there is none."""
        following = self._next()
        if not self._lower or following is None:
            return False
        log.warning("memory was short: the plan becomes %s, after %s", following, self.plan)
        self.plan = following
        return True

    def _next(self) -> str | None:
        """The next plan; a CPU has nowhere to stream from."""
        following = NEXT.get(self.plan)
        if self.device.type == "cpu" and following not in plans.HOST_ONLY:
            return None
        return following


def tidy(device: torch.device) -> None:
    """Give back what nobody holds any more, of the device and of the host's locked memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()


def fill(
    module: nn.Module,
    state: Mapping[str, Any],
    dtype: torch.dtype,
    holding: Holding,
    tick: Callable[[int, int], None],
) -> nn.Module:
    """Read every weight of ``module`` (made on the meta device) to where ``holding`` wants it.

    One tensor after the other: neither host nor device holds more than one of them twice. ``tick``
    is called with the modules done and in all. Raises ConfigError for a file that fails under way.
    """
    found = [path for path, _ in module.named_modules()]  # no modules: what is replaced must go
    for done, path in enumerate(found):
        owner = module.get_submodule(path)
        for name, _ in list(owner.named_parameters(recurse=False)):
            weight = state[f"{path}.{name}" if path else name]
            tensor = read(weight, dtype, holding.home(path))
            owner.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        kept = holding.keep(path, owner)
        if kept is not owner:
            parent, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(parent), leaf, kept)
        tick(done + 1, len(found))
    return module.eval().requires_grad_(False)


def read(weight: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A weight in memory of its own: a file that is replaced later changes nothing."""
    try:
        tensor: torch.Tensor = weight.read().to(device=device, dtype=dtype, copy=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"a weights file failed while it was read: {faults.first_line(error)}",
            hint="Check the disk and fetch the model again.",
        ) from error
    return tensor.contiguous()
