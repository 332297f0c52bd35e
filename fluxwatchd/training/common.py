"""What the training programs share: options, log, schedule, averaged weights, several GPUs."""

import argparse
import copy
import dataclasses
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor, nn

Options = TypeVar("Options")

CHANCE = random.Random(0)  # chooses scales and crops, keeps no secret
"""Choices that are made once a batch, on the CPU."""


def option(default: Any, text: str) -> Any:
    """A dataclass field with a default and a line of help."""
    return dataclasses.field(default=default, metadata={"help": text})


def parse(kind: type[Options], arguments: Sequence[str] | None = None) -> Options:
    """Build ``kind``, a dataclass of plain fields, from a command line; ``a_b`` is ``--a-b``."""
    hints = get_type_hints(kind)
    parser = argparse.ArgumentParser(description=(kind.__doc__ or "").splitlines()[0])
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        hint = hints[field.name]
        plain = next((a for a in get_args(hint) if a is not type(None)), hint)
        flag = f"--{field.name.replace('_', '-')}"
        text = field.metadata.get("help", "")
        needed = field.default is dataclasses.MISSING
        default = None if needed else field.default
        if plain is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=text
            )
        else:
            parser.add_argument(flag, type=plain, required=needed, default=default, help=text)
    return kind(**vars(parser.parse_args(arguments)))


class Log:
    """JSON lines on standard output and, with a file, kept there too; quiet but on rank 0."""

    def __init__(self, file: Path | None = None, loud: bool = True) -> None:
        self.start, self.file, self.loud = time.monotonic(), file, loud
        if file and loud:
            file.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, **fields: Any) -> None:
        """Write one line, with the seconds since the start and floats to five digits."""
        if not self.loud:
            return
        seconds = round(time.monotonic() - self.start, 1)
        line = json.dumps({"t": seconds} | {k: _short(v) for k, v in fields.items()})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        if self.file:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return value


class Budget:
    """How far training has come: by ``steps`` if there are any, else by ``seconds``.

    ``spent``: seconds that an earlier process trained, ``step`` of which it did already.
    """

    def __init__(self, seconds: float, steps: int = 0) -> None:
        self.seconds, self.steps, self.step = seconds, steps, 0
        self.start, self.spent = time.monotonic(), 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training, of all processes one after the other."""
        return self.spent + time.monotonic() - self.start

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        if self.steps:
            return min(1.0, self.step / self.steps)
        return min(1.0, self.elapsed / self.seconds)

    def __iter__(self) -> Iterator[float]:
        """Yield the progress before every step; the clock starts with the first."""
        self.start, first = time.monotonic(), self.step
        while (progress := agree(self.progress)) < 1:
            yield progress
            self.step += 1
            if self.step == first + 1 and not self.steps:
                # the first step compiles; its time is no training
                self.start = time.monotonic()


def cosine(progress: float, step: int, warm_up: int, floor: float = 0.0) -> float:
    """Learning rate as a part of its peak: linear warm-up, then half a cosine to ``floor``."""
    fall = 0.5 + 0.5 * math.cos(math.pi * progress)
    return min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) * fall)


class Average:
    """Exponentially averaged copies of modules: what is saved and shown."""

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self.live = list(modules)
        self.kept = [copy.deepcopy(m).eval().requires_grad_(False) for m in modules]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the live weights; faster in the beginning."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for kept, live in zip(self.kept, self.live, strict=True):
            torch._foreach_lerp_(list(kept.parameters()), list(live.parameters()), weight)


def set_up(seed: int, threads: int = 0) -> torch.device:
    """Seed everything and choose the device; one process a GPU under torchrun."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.manual_seed(seed * 1000 + rank)
    if threads:
        torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    # refuses sequence lengths that are no multiple of 8 in training ("mha_graph.execute")
    torch.backends.cuda.enable_cudnn_sdp(False)
    if world() > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl", device_id=device)
    return device


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agree(value: float) -> float:
    """Rank 0's value, on every rank."""
    if world() == 1:
        return value
    shared = torch.tensor(value, device="cuda", dtype=torch.float64)
    torch.distributed.broadcast(shared, 0)
    return float(shared)


def share_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over the processes, in one piece."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat, torch.distributed.ReduceOp.AVG)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def careful_step(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Tensor:
    """Clip the gradients to norm 1 and step, or leave everything as it is if one is not finite.

    The test stays on the device: fused optimisers read ``found_inf``, as mixed precision uses it.
    Returns 1 for a step that was left out, else 0.
    """
    bad = (~torch.isfinite(nn.utils.clip_grad_norm_(parameters, 1.0))).float()
    optimiser.found_inf = bad  # type: ignore[attr-defined]
    optimiser.step()
    return bad


def half_copy(module: nn.Module) -> Any:
    """A float16 copy on the CPU, to be saved."""
    return copy.deepcopy(module).half().cpu()


def autocast(device: torch.device) -> Any:
    """bfloat16 on a GPU; nothing on a CPU, where tests want exact sums."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def mean(losses: list[Tensor]) -> float:
    """Mean of the losses since the last look; this waits for the device."""
    return float(torch.stack(losses).nanmean()) if losses else math.nan
