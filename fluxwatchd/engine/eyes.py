"""A model's DINO encoder and adapter, loaded: whether they fit, and which weights they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from fluxwatchd.engine import lowrank
from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.identity import Identities
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.places import Parts
from fluxwatchd.engine.projector import Projector, load_lora


def add_dino(model: Model, parts: Parts) -> Model:
    """``model`` with the encoder and adapter that ``parts`` found; or the reason why it has none.

    Raises ConfigError for what cannot be loaded or does not fit.
    """
    eyes = parts.eyes
    if eyes.encoder is None:
        return replace(model, dino_reason=eyes.reason or "no DINO encoder comes with this model")
    encoder = DinoEncoder.load(eyes.encoder, model.device)
    files = {**model.checkpoint.files, "dino": encoder.identity}
    model = replace(
        model,
        encoder=encoder,
        encoder_name=f"{eyes.name} {encoder.identity}",
        checkpoint=replace(model.checkpoint, files=files),
    )
    return _add_adapter(model, encoder, parts)


def _add_adapter(model: Model, encoder: DinoEncoder, parts: Parts) -> Model:
    """``model`` with the adapter, checked against model and encoder; or as it is without one."""
    file = parts.eyes.adapter
    if file is None:
        return model
    adapter = Projector.load(file, model.device)
    config: Any = cast(Any, model.transformer).config
    family = "nano" if parts.bundled else model.variant.name
    adapter.check(model=family, model_width=config.joint_attention_dim, encoder=encoder)
    lowrank.inject(model.transformer, load_lora(file), file, model.device)
    identity = Identities(None).of(file)
    files = {**model.checkpoint.files, "adapter": identity}
    return replace(
        model,
        projector=adapter,
        adapter_name=f"{file.name} {identity}",
        checkpoint=replace(model.checkpoint, files=files),
    )
