"""A model's DINO encoder and adapter: which, whether they fit, and which weights they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fluxwatchd.config import Profile
from fluxwatchd.engine import hub, lowrank
from fluxwatchd.engine.contents import refuse_pickle
from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.identity import Identities
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.places import DINO_HUB, NANO, Parts
from fluxwatchd.engine.projector import Projector, load_lora
from fluxwatchd.errors import ConfigError


def add_dino(model: Model, profile: Profile, parts: Parts) -> Model:
    """``model`` with the encoder and adapter that the profile names or the model brings.

    Where ``dino_mode`` leaves it open, an encoder that cannot be had is a reason, not an error.
    """
    own = str(NANO / "dino") if (NANO / "dino").is_dir() else None
    source = profile.dino_encoder or (own if parts.bundled else DINO_HUB)
    asked = profile.dino_encoder is not None or profile.dino_mode in {"tokens", "guide", "both"}
    reason = None if asked else _why_no_encoder(source, profile)
    if source is None or reason:
        return replace(model, dino_reason=reason or "no DINO encoder comes with this model")
    try:
        encoder = DinoEncoder.load(source, model.device)
    except ConfigError as error:
        if asked or parts.bundled:
            raise
        return replace(model, dino_reason=str(error))
    files = {**model.checkpoint.files, "dino": encoder.identity}
    named = "nano-dino" if source == own else source
    model = replace(
        model,
        encoder=encoder,
        encoder_name=f"{named} {encoder.identity}",
        checkpoint=replace(model.checkpoint, files=files),
    )
    return _add_adapter(model, encoder, profile, parts)


def _why_no_encoder(source: str | None, profile: Profile) -> str | None:
    """Why the encoder is not even looked for, if so."""
    if source is None:
        return "no DINO encoder comes with this model"
    unused = profile.dino_mode == "off" or profile.dino_strength == 0
    if unused and source == DINO_HUB and hub.cached(DINO_HUB, "config.json") is None:
        return f"DINO is off and {DINO_HUB} was not fetched"
    return None


def _add_adapter(model: Model, encoder: DinoEncoder, profile: Profile, parts: Parts) -> Model:
    """``model`` with the adapter, checked against model and encoder; or as it is without one."""
    own = NANO / "dino_adapter"
    path = Path(profile.dino_adapter).expanduser() if profile.dino_adapter else own
    is_own = parts.bundled and own.is_dir() and not profile.dino_encoder
    if not profile.dino_adapter and not is_own:  # the bundled one fits the bundled encoder alone
        return model
    refuse_pickle(path)
    adapter = Projector.load(path, model.device)
    config: Any = cast(Any, model.transformer).config
    family = "nano" if parts.bundled else model.variant.name
    adapter.check(model=family, model_width=config.joint_attention_dim, encoder=encoder)
    lowrank.inject(model.transformer, load_lora(path), path, model.device)
    file = path / "adapter.safetensors" if path.is_dir() else path
    identity = Identities(None).of(file)
    files = {**model.checkpoint.files, "adapter": identity}
    return replace(
        model,
        projector=adapter,
        adapter_name=f"{file.name} {identity}",
        checkpoint=replace(model.checkpoint, files=files),
    )
