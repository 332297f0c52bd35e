"""How a model is made fast on its GPU: compiled blocks, the attention that is fastest there.

Both are found out on the device itself, once a model. A CPU computes as torch does: nano is done
before a compiler is.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxwatchd.engine import faults, toolchain

log = logging.getLogger(__name__)

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable by which torch is told where compiled kernels are kept."""
VARIETY = 64
"""Kinds of call a block is compiled for: batches of one and of more, with and without a bias, with
a LoRA, one GPU's and another's. torch's own limit, 8, is for code whose every shape differs."""
ATTENTION = {"native": None, "_native_cudnn": SDPBackend.CUDNN_ATTENTION}
"""What is tried, by diffusers' names. Both take the bias by which DINO's strength is laid on; what
takes none (Flash, Sage) would give another result at strength 1 than below it."""
ROUNDS = 5
FULL = 0.97
"""A device counts as full where a token takes at most 1/FULL of the least time seen."""
BATCHES = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was found for a model on its device.

    ``attention``: diffusers' name of the backend. ``compiled``: whether blocks and autoencoder are;
    ``reason`` says why not. ``full``: tokens at once from which more at once gain nothing.
    """

    attention: str
    compiled: bool
    reason: str | None = None
    full: int = 0


def keep_below(state_dir: Path) -> None:
    """Have compiled kernels kept under ``state_dir``: a second start does not compile again.

    Must be called before torch compiles anything; a place that was set by hand stays.
    """
    os.environ.setdefault(CACHE, str(state_dir / "compiled"))


# --- compiling ------------------------------------------------------------------------------


def blocks(transformer: nn.Module) -> list[nn.Module]:
    """The repeated blocks of both kinds, in the order in which they run."""
    held: Any = cast(Any, transformer)
    return [*held.transformer_blocks, *held.single_transformer_blocks]


def compile_blocks(transformer: nn.Module, *, backend: str = "inductor") -> None:
    """Have every repeated block compiled when it first runs: one compilation for all of a kind.

    The forward alone, so that hooks which bring a block's weights stay outside of it. For tiles of
    any size: as fast as for one, and tiles differ from picture to picture.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIETY)
    for block in blocks(transformer):
        plain_block(block)
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend)


def plain_blocks(transformer: nn.Module) -> None:
    """Have the blocks run as they were written, with their layers' hooks."""
    for block in blocks(transformer):
        plain_block(block)


def plain_block(block: nn.Module) -> None:
    """Undo what compile_blocks() did to one block."""
    block.__dict__.pop("forward", None)


def compile_vae(vae: nn.Module, *, backend: str = "inductor") -> None:
    """Have FLUX.1's autoencoder compiled, both ways, when each first runs.

    For one size of windows: for any size it takes four times as long to compile, and a quarter
    longer to run.
    """
    held: Any = cast(Any, vae)
    held.encoder.compile(backend=backend, dynamic=False)
    held.decoder.compile(backend=backend, dynamic=False)


def plain_vae(vae: nn.Module) -> None:
    """Undo compile_vae()."""
    held: Any = cast(Any, vae)
    held.encoder._compiled_call_impl = held.decoder._compiled_call_impl = None


@contextmanager
def as_written(vae: nn.Module) -> Iterator[None]:
    """Run an autoencoder uncompiled: for gradients, and for windows of another size."""
    held: Any = cast(Any, vae)
    parts = (held.encoder, held.decoder)
    compiled = [part._compiled_call_impl for part in parts]
    plain_vae(vae)
    try:
        yield
    finally:
        for part, call in zip(parts, compiled, strict=True):
            part._compiled_call_impl = call


# --- attention ------------------------------------------------------------------------------


def fastest_attention(
    device: torch.device, dtype: torch.dtype, *, heads: int, size: int, tokens: int
) -> str:
    """The backend of ATTENTION that is fastest for ``tokens`` of ``heads`` x ``size``.

    One that fails, with a bias or at a length that is no multiple of 8, is out of the race.
    """
    found: dict[str, float] = {}
    for name, backend in ATTENTION.items():
        with suppress(RuntimeError):
            _attend(backend, _heads(device, dtype, heads, size, 8 * 9 + 1), bias=True)
            given = _heads(device, dtype, heads, size, tokens)
            _attend(backend, given, bias=True)
            found[name] = _timed(partial(_attend, backend, given, bias=False), device)
    log.debug("attention: %s", {name: f"{1000 * s:.2f} ms" for name, s in found.items()})
    return min(found, key=lambda name: found[name], default="native")


def _heads(
    device: torch.device, dtype: torch.dtype, heads: int, size: int, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 1, heads, tokens, size, device=device, dtype=dtype)
    return q, k, v


def _attend(
    backend: SDPBackend | None, given: tuple[Tensor, Tensor, Tensor], *, bias: bool
) -> Tensor:
    q, k, v = given
    mask = torch.zeros(1, 1, 1, k.shape[2], device=q.device, dtype=q.dtype) if bias else None
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _timed(work: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """Median seconds of a piece of work on ``device``."""
    found = []
    work()
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - start)
    return median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- tiles at once --------------------------------------------------------------------------


def full_at(evaluate: Callable[[int], object], tokens: int, device: torch.device, most: int) -> int:
    """From how many tokens at once ``device`` is full, for batches up to ``most`` tiles.

    ``evaluate`` runs the model on as many tiles of ``tokens`` each. Memory that is short ends the
    search.
    """
    seconds: dict[int, float] = {}
    for batch in BATCHES:
        if batch > most:
            break
        try:
            seconds[batch] = _timed(partial(evaluate, batch), device, 2) / batch
        except (RuntimeError, MemoryError) as error:
            if not faults.is_memory(error):
                raise
            faults.without_frames(error)
            break
    return tokens * first_full(seconds)


def first_full(seconds: dict[int, float]) -> int:
    """The smallest batch whose ``seconds`` a tile are at most 1/FULL of the least."""
    least = min(seconds.values(), default=0.0)
    return min((batch for batch, took in seconds.items() if took * FULL <= least), default=1)


def batch_for(full: int, tokens: int, most: int) -> int:
    """Tiles of ``tokens`` that fill a device which is full at ``full``; at least 1."""
    return max(1, min(most, -(-full // tokens)))


def reasons(plan: str, device: torch.device) -> Iterable[str]:
    """Why the blocks of a transformer held by ``plan`` are not compiled; nothing if they are."""
    if device.type != "cuda":
        yield "a CPU runs them as they are"
    if plan.startswith("sequential"):
        yield "every layer visits the device by itself"
    missing = toolchain.missing()
    if missing:
        yield missing
