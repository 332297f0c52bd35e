"""What a loaded model is tried with on its GPU before the first picture, and what it gets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch

from fluxwatchd.config import EngineSettings
from fluxwatchd.engine import Beat, faults, flux, kernels, memory, plans
from fluxwatchd.engine.flux import Text
from fluxwatchd.engine.kernels import Tuning
from fluxwatchd.engine.model import Model
from fluxwatchd.variants import BUNDLED

log = logging.getLogger(__name__)

_tuning = threading.Lock()
LOOK = 0.5
"""Seconds between two beats of a device that waits for another to be tuned."""
NATIVE = "native"
COMPILE_OFF = 'engine.compile is "off"'


@torch.inference_mode()
def tune(model: Model, text: Text, settings: EngineSettings, beat: Beat) -> Model:
    """``model`` with the fastest attention, compiled, and with what was found about both.

    ``text`` is what it will mostly be given. Only for FLUX.1 on a GPU: the bundled model is done
    before a compiler is. What cannot be compiled runs as it was written; the log, the record and
    `fluxwatchd doctor` say so.
    """
    if model.device.type != "cuda" or model.variant.model == BUNDLED:
        return model
    with _alone(beat):
        return _tune(model, text, settings, beat)


@contextmanager
def _alone(beat: Beat) -> Iterator[None]:
    """One device after the other.

    What is measured on one would be slowed by what is compiled for another. And an attention is
    measured by switches that are the whole process's: of two threads that set them and set them
    back in turns, the second leaves them as the first had set them.
    """
    while not _tuning.acquire(timeout=LOOK):
        beat("compile", 0, 3)
    try:
        yield
    finally:
        _tuning.release()


def _tune(model: Model, text: Text, settings: EngineSettings, beat: Beat) -> Model:
    side = model.variant.native_tile // model.unit
    tokens = side * side + text.states.shape[1]
    beat("compile", 0, 3)
    attention = _set_attention(model, tokens, alone=len(memory.find_devices(settings)) == 1)
    beat("compile", 1, 3)
    most = memory.most_tiles(settings, str(model.device), tokens, model.width, model.dtype.itemsize)
    full = kernels.full_at(lambda n: evaluate(model, text, side, n), tokens, model.device, most)
    beat("compile", 2, 3)
    reason = None if settings.compile == "auto" else COMPILE_OFF
    plan = model.holding.plan if model.holding else plans.RESIDENT
    reason = reason or next(iter(kernels.reasons(plan, model.device)), None)
    reason = reason or _compile(model, text, side)
    beat("compile", 3, 3)
    tuning = Tuning(attention, reason is None, reason, full)
    log.info(
        "tuned for %s: attention %s, %s, full with %d tokens",
        memory.device_name(str(model.device)),
        attention,
        "compiled" if reason is None else f"not compiled: {reason}",
        full,
    )
    notes = model.notes
    if reason is not None and reason != COMPILE_OFF:
        notes = (*notes, f"run as written, not compiled: {reason}")
    vae = replace(model.vae, compiled=model.vae.window) if reason is None else model.vae
    return replace(model, tuning=tuning, notes=notes, vae=vae)


def _set_attention(model: Model, tokens: int, *, alone: bool) -> str:
    """Measure, and let the transformer use what was fastest.

    Where it is not ``alone``: the one that needs no switch of the whole process, by which it
    would take another device's DINO or autoencoder the attention that these need.
    """
    module: Any = cast(Any, model.transformer)
    config = module.config
    attention = NATIVE
    if alone:
        attention = kernels.fastest_attention(
            model.device,
            model.dtype,
            heads=config.num_attention_heads,
            size=config.attention_head_dim,
            tokens=tokens,
        )
    module.set_attention_backend(attention)
    return attention


def _compile(model: Model, text: Text, side: int) -> str | None:
    """Compile blocks and autoencoder and run both once; why it cannot be done, if so."""
    kernels.compile_blocks(model.transformer)
    kernels.compile_vae(model.vae.module)
    try:
        evaluate(model, text, side, 1)
        window = model.vae.window
        latents = torch.zeros(1, model.vae.channels, window, window, device=model.device)
        model.vae.encode(model.vae.decode(latents))
    except Exception as error:  # a compiler fails in more ways than it has classes
        if faults.is_memory(error) or faults.is_device(error):
            raise
        kernels.plain_blocks(model.transformer)
        kernels.plain_vae(model.vae.module)
        log.warning("kernels cannot be compiled here: %s", faults.first_line(error))
        return faults.first_line(error)
    return None


def evaluate(model: Model, text: Text, side: int, batch: int) -> None:
    """Run the transformer on ``batch`` tiles of noise, ``side`` tokens a side."""
    config: Any = cast(Any, model.transformer).config
    latents = torch.randn(
        batch, side * side, config.out_channels or config.in_channels,
        device=model.device, dtype=model.dtype,
    )  # fmt: skip
    flux.velocity(
        model.transformer,
        latents,
        torch.full((batch,), 0.5, device=model.device),
        (side, side),
        text,
        guidance=3.5 if model.variant.has_guidance else None,
    )
