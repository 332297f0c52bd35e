"""Where a profile's DINO encoder and adapter lie, and whether they fit; without reading a weight.

What is asked for is there or refused; only where DINO is off may an encoder be missing, which
costs the record its drift.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxwatchd.config import Profile
from fluxwatchd.engine import contents, hub, named
from fluxwatchd.engine.contents import refuse_pickle
from fluxwatchd.engine.faults import first_line
from fluxwatchd.engine.identity import weight_files
from fluxwatchd.errors import ConfigError

DINO_HUB = "facebook/dinov2-base"
"""The encoder of models that bring none."""
MODEL_TYPES = ("dinov2", "dinov2_with_registers")
ADAPTER = "fluxwatchd.dino_adapter"
"""The entry of a safetensors header by which a DINO adapter is told; what it was made for."""
ADAPTER_FILE = "adapter.safetensors"
WAYS_OUT = 'name a dino_encoder that is here, or set dino_mode = "off".'


@dataclass(frozen=True, slots=True)
class Eyes:
    """An encoder's folder with the name that the record gives it, and an adapter's file.

    ``reason`` says why there is no encoder; ``to_come`` is the error that says what will be fetched
    at start, where a repository was looked for in the cache alone.
    """

    encoder: Path | None = None
    name: str = ""
    adapter: Path | None = None
    reason: str | None = None
    to_come: hub.NotHere | None = None


def find(
    profile: Profile, *, own: Path | None, model: str, text_width: int, fetch: hub.Fetch
) -> Eyes:
    """The encoder and adapter of a resolved ``profile``, checked. Raises ConfigError.

    ``own``: the folder of the model's own, if it brings them. ``model`` and ``text_width`` are what
    an adapter has to be made for.
    """
    mine = own / "dino" if own and not profile.dino_encoder else None
    name = profile.dino_encoder or ("nano-dino" if mine else DINO_HUB)
    needed = mine is not None or is_asked(profile)
    folder: Path | None = None
    config: Mapping[str, Any] | None = None
    to_come: hub.NotHere | None = None
    try:
        folder = mine or (_encoder(name, profile, fetch) if needed else _idle(name))
        config = _encoder_config(folder, name)
    except hub.NotHere as error:
        to_come = error
    except ConfigError as error:
        if needed:
            raise
        return Eyes(reason=str(error))
    adapter = _adapter(profile, mine, fetch)
    if adapter is not None:
        check_adapter(_spec(adapter, profile), model, text_width, config)
    elif profile.dino_mode in {"tokens", "both"}:
        raise no_adapter(profile.dino_mode, profile.variant)
    return Eyes(folder, name, adapter, to_come=to_come)


def wants(profile: Profile) -> bool:
    """Whether DINO is to steer pictures of this resolved profile."""
    return profile.dino_mode != "off" and bool(profile.dino_strength)


def is_asked(profile: Profile) -> bool:
    """Whether an encoder has to be there: DINO is to steer, or a setting is about it."""
    if profile.dino_encoder is not None or wants(profile):
        return True
    return profile.dino_mode != "off" and (
        profile.dino_mode != "auto" or profile.dino_adapter is not None
    )


def no_adapter(mode: str, variant: str) -> ConfigError:
    """The error for tokens that nothing can make."""
    return ConfigError(
        f"dino_mode is {mode!r}, but there is no trained adapter for {variant} and this encoder",
        hint='Name a dino_adapter that fits, or set dino_mode = "auto" or "guide".',
    )


# --- the encoder ----------------------------------------------------------------------------


def _idle(name: str) -> Path:
    """An encoder that nobody asked for, where the cache has it. Raises ConfigError."""
    try:
        return hub.only_cached(name, named.EVERYTHING)
    except ConfigError as error:
        raise ConfigError(f"DINO is off and {name} was not fetched") from error


def _encoder(name: str, profile: Profile, fetch: hub.Fetch) -> Path:
    """The folder of an encoder that was asked for. Raises NotHere if it will be fetched."""
    try:
        return named.find(name, "dino_encoder", "dino_encoder", fetch)
    except hub.NotHere:
        raise
    except ConfigError as error:
        if not named.is_hub_id(name):
            raise
        wish = f"dino_mode is {profile.dino_mode!r}, dino_strength {profile.dino_strength or 0:g}"
        raise ConfigError(
            f"{wish}, but the DINO encoder is not to be had: {error}",
            hint=f"Fetch it (hf download {name}), {WAYS_OUT}",
        ) from error


def _encoder_config(folder: Path, name: str) -> Mapping[str, Any]:
    """config.json of an encoder's folder, its weights looked at too. Raises ConfigError."""
    hint = f"Name the folder or hub id of a DINOv2 model, as {DINO_HUB}, or set dino_mode to off."
    try:
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"dino_encoder {name!r} cannot be loaded: its config.json tells no model: "
            f"{first_line(error)}",
            hint=hint,
        ) from error
    if kind not in MODEL_TYPES:
        raise ConfigError(f"dino_encoder {name!r} is a {kind} model, not DINOv2", hint=hint)
    files = weight_files(folder, "dino")
    if not files:
        for file in sorted(folder.iterdir()):
            refuse_pickle(file)
        raise ConfigError(f"dino_encoder {name!r} has no .safetensors file", hint=hint)
    for file in files.values():
        contents.read(file)
    return config


# --- the adapter ----------------------------------------------------------------------------


def _adapter(profile: Profile, mine: Path | None, fetch: hub.Fetch) -> Path | None:
    """The adapter's file: the one that is named, or that which came with the model's encoder."""
    if profile.dino_mode == "off":
        return None
    if profile.dino_adapter is not None:
        key = "dino_adapter"
        return named.find_file(profile.dino_adapter, key, key, fetch, preferred=ADAPTER_FILE)
    own = mine.parent / "dino_adapter" / ADAPTER_FILE if mine else None
    return own if own and own.is_file() else None


def _spec(file: Path, profile: Profile) -> Mapping[str, Any]:
    """What an adapter says that it was made for. Raises ConfigError if it is none."""
    name = profile.dino_adapter or str(file)
    said = contents.read(file).metadata.get(ADAPTER)
    if said is None:
        raise ConfigError(
            f"dino_adapter {name!r} is no DINO adapter",
            hint="Name a file that `fluxwatchd train adapter` wrote.",
        )
    try:
        return dict(json.loads(said))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"dino_adapter {name!r} has a broken layout: {first_line(error)}",
            hint="Train it again with `fluxwatchd train adapter`.",
        ) from error


def check_adapter(
    spec: Mapping[str, Any], model: str, text_width: int, encoder: Mapping[str, Any] | None
) -> None:
    """Raise ConfigError unless an adapter is for this model and for an encoder of this shape.

    ``encoder`` is its config.json, None where that is not here yet. That it is the very encoder is
    known only once its weights are read (Projector.check).
    """
    pairs = [
        ("model", spec.get("model"), model),
        ("width of the text states", spec.get("model_width"), text_width),
    ]
    if encoder is not None:
        pairs.append(("encoder width", spec.get("encoder_width"), encoder.get("hidden_size")))
        layers, depth = spec.get("layers") or (), encoder.get("num_hidden_layers")
        deepest = max(layers, default=0)
        if isinstance(depth, int) and deepest > depth:
            pairs.append(("encoder depth", deepest, depth))
    for what, made, here in pairs:
        if made != here:
            raise misfit(what, made, here)


def misfit(what: str, made: Any, here: Any) -> ConfigError:
    """The error for an adapter that was made for something else."""
    return ConfigError(
        f"dino_adapter was made for {what} {made}, but this is {here}",
        hint="Name the adapter of this model and encoder, or set dino_mode to guide.",
    )
