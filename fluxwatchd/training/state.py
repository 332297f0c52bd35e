"""What changes while a stage trains, kept on disk: a run that is broken off goes on at its step.

The same command goes on from it: weights, their averages, the optimiser, the place in the schedule
and the state of chance, so that on one process what is trained is the same, broken off or not.
"""

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fluxwatchd.errors import ConfigError
from fluxwatchd.training import common

SUFFIX = ".state.safetensors"
FREE = frozenset({"output", "validate", "judge", "save_every", "compile"})
"""Options that may be others when a run goes on."""


@dataclass(frozen=True, slots=True)
class Run:
    """A stage under way. ``options`` are what its schedule depends on, as text."""

    file: Path
    options: Mapping[str, str]
    keeper: common.Average
    optimiser: torch.optim.Optimizer
    budget: common.Budget

    def go_on(self) -> bool:
        """Take up the state that is there, if any; whether there was one.

        Raises ConfigError for the state of a run with other options, or one that cannot be read.
        """
        if not self.file.exists():
            return False
        try:
            with safetensors.safe_open(self.file, "pt") as opened:
                said = json.loads((opened.metadata() or {})["fluxwatchd.training"])
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(
                f"{self.file} cannot be read: {error}", hint="Delete it, to begin anew."
            ) from error
        changed = sorted(k for k, v in self.options.items() if said["options"].get(k) != v)
        if changed:
            raise ConfigError(
                f"{self.file} is of a run with another {', '.join(changed)}",
                hint="Give the same options as before, another --output, or delete the file.",
            )
        self._put(found)
        self.budget.step, self.budget.spent = said["step"], said["spent"]
        _set_chance(found, said["chance"], self.budget.step)
        return True

    def save(self, step: int) -> None:
        """Write aside, then rename. ``step``: how many are done. Only the first process writes."""
        if os.environ.get("RANK", "0") != "0":
            return
        said = {
            "step": step,
            "spent": self.budget.elapsed,
            "options": dict(self.options),
            "chance": common.CHANCE.getstate(),
        }
        tensors = {name: t.detach().contiguous().cpu() for name, t in self._tensors()}
        aside = self.file.with_name(f".{self.file.name}.part")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(
            tensors | _chance(), aside, metadata={"fluxwatchd.training": json.dumps(said)}
        )
        aside.replace(self.file)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything by name: weights and averages of every module, and the optimiser's moments."""
        for kind, modules in (("live", self.keeper.live), ("kept", self.keeper.kept)):
            for i, module in enumerate(modules):
                for name, tensor in module.state_dict().items():
                    yield f"{kind}.{i}.{name}", tensor
        for i, moments in self.optimiser.state_dict()["state"].items():
            for name, tensor in moments.items():
                yield f"optimiser.{i}.{name}", tensor

    def _put(self, found: Mapping[str, Tensor]) -> None:
        """Put tensors back where :meth:`_tensors` finds them."""
        for kind, modules in (("live", self.keeper.live), ("kept", self.keeper.kept)):
            for i, module in enumerate(modules):
                start = f"{kind}.{i}."
                own = {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}
                module.load_state_dict(own)
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        for key, tensor in found.items():
            kind, number, *name = key.split(".")
            if kind == "optimiser":
                i = int(number)
                # in the parameter's own layout: fused optimisers walk both side by side
                like = torch.empty_like(parameters[i]) if tensor.ndim else tensor.clone()
                moments.setdefault(i, {})[".".join(name)] = like.copy_(tensor)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})


def text_of(options: Any) -> dict[str, str]:
    """What of the options decides a run, as text."""
    names = (name for name in options.__dataclass_fields__ if name not in FREE)
    return {name: str(getattr(options, name)) for name in names}


def _chance() -> dict[str, Tensor]:
    """The generators' states."""
    states = {"chance.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["chance.cuda"] = torch.cuda.get_rng_state()
    return states


def _set_chance(found: Mapping[str, Tensor], choices: Any, step: int) -> None:
    """Go on with the states that were kept; processes other than the first draw from new ones."""
    rank = int(os.environ.get("RANK", "0"))
    version, numbers, gauss = choices
    common.CHANCE.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(found["chance.cpu"])
    if "chance.cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["chance.cuda"])
    if rank:
        seed = random.Random(f"{step} {rank}").getrandbits(63)
        torch.manual_seed(seed)
        common.CHANCE.seed(seed)
