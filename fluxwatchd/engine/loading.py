"""What a profile names -> a model on the device: modules, text states, DINO, and which weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import (
    Beat,
    contents,
    eyes,
    faults,
    layouts,
    lora,
    memory,
    places,
    plans,
    weights,
)
from fluxwatchd.engine.eyeplaces import DINO_HUB
from fluxwatchd.engine.holding import Holding, fill, tidy
from fluxwatchd.engine.identity import Identities
from fluxwatchd.engine.model import Model, TextSource
from fluxwatchd.engine.places import NANO, Parts, find, weights_of
from fluxwatchd.engine.plans import Choice
from fluxwatchd.engine.tensorcache import TensorCache
from fluxwatchd.engine.text import MOST_STORED, FluxText, no_text
from fluxwatchd.engine.vae import Vae
from fluxwatchd.engine.weights import State
from fluxwatchd.errors import ConfigError
from fluxwatchd.job import Checkpoint
from fluxwatchd.variants import Variant

__all__ = ["DINO_HUB", "NANO", "load", "load_vae", "weight_bytes"]

log = logging.getLogger(__name__)

STAGES = ("identity", "transformer", "dino")
"""What loading goes through; each counts 100 in its progress."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Says how far loading is, so that the watchdog sees it move."""

    beat: Beat

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` of one of STAGES."""
        self.beat("load", 100 * STAGES.index(stage) + 100 * done // total, 100 * len(STAGES))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A transformer that is not read yet: its configuration and weights, LoRA files added."""

    path: Path
    config: Mapping[str, Any]
    state: State
    loras: tuple[lora.Lora, ...] = ()


def load(
    profile: Profile,
    settings: EngineSettings,
    device: str,
    state_dir: Path | None,
    beat: Beat,
) -> Model:
    """Load what a resolved ``profile`` names onto ``device``, by the memory plan of ``settings``.

    The text states come first: their encoders are as large as half a FLUX.1, and fit beside
    nothing. Raises ConfigError for files that are missing, unreadable, of another kind or not
    allowed, and if no memory plan fits.
    """
    hush()
    variant, dtype, steps = profile.kind, memory.dtype_for(device), Steps(beat)
    steps("identity", 0, 1)
    parts = places.survey(profile, settings)
    recipe = read_recipe(parts, profile)
    files = identify(parts, recipe, Identities(state_dir, partial(steps, "identity")))
    text = text_source(
        parts,
        recipe,
        settings,
        variant,
        device=device,
        dtype=dtype,
        state_dir=state_dir,
        files=files,
    )
    text(profile.prompt)
    beside = places.beside(parts, profile, dtype.itemsize)
    pixel = plans.TINY_VALUES if parts.bundled else plans.PIXEL_VALUES
    choice = choose(recipe, profile, settings, device, beside=beside, pixel=pixel)
    holding = Holding(torch.device(device), choice.plan, lower=settings.memory == "auto")
    vae = load_vae(parts.vae, dtype, device)
    check_fit(recipe.config, vae, variant, parts)  # before the many gigabytes are read
    transformer = build(recipe, dtype, holding, partial(steps, "transformer"))
    model = Model(
        variant=variant,
        transformer=transformer,
        vae=vae,
        text=text,
        device=torch.device(device),
        dtype=dtype,
        checkpoint=Checkpoint(
            variant=variant.name,
            model=profile.model or variant.model,
            files=files,
            device=device,
            device_name=memory.device_name(device),
            dtype=str(dtype).removeprefix("torch."),
            plan=holding.plan,
        ),
        holding=holding,
        notes=notes(recipe, choice, holding),
    )
    model = eyes.add_dino(model, parts)
    holding.attach(transformer)
    steps("dino", 1, 1)
    return model


def hush() -> None:
    """Keep the libraries from talking to the terminal: what matters of it is raised here."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def identify(parts: Parts, recipe: Recipe, identities: Identities) -> dict[str, str]:
    """The hash of every weights file by role."""
    found = {role: identities.of(file) for role, file in places.files_of(parts)}
    for i, part in enumerate(recipe.loras):
        name = f"lora/{part.file.name}"
        found[name if name not in found else f"{name} ({i + 1})"] = identities.of(part.file)
    return found


def notes(recipe: Recipe, choice: Choice, holding: Holding) -> tuple[str, ...]:
    """What of the loading belongs in the record, in sentences."""
    said = [
        f"the text encoder's part of {part.file.name} is not applied ({part.skipped} tensors)"
        for part in recipe.loras
        if part.skipped
    ]
    if holding.plan != choice.plan:
        said.append(f"memory plan {holding.plan}: memory was short while {choice.plan} was loaded")
    elif choice.plan != plans.RESIDENT:
        said.append(f"memory plan {choice.plan}: {choice.why}")
    return tuple(said)


def weight_bytes(profile: Profile, settings: EngineSettings, device: str) -> int:
    """What transformer and autoencoder of a resolved profile take on ``device``, bytes."""
    parts = find(profile.model or profile.kind.model, profile.kind, settings)
    files = {file for path in (parts.transformer, parts.vae) for file in weights_of(path).values()}
    shapes = [shape for file in files for shape in contents.read(file).shapes.values()]
    return sum(map(math.prod, shapes)) * memory.dtype_for(device).itemsize


# --- transformer ----------------------------------------------------------------------------


def read_recipe(parts: Parts, profile: Profile) -> Recipe:
    """What the transformer will be, from either layout; no weight is read. Raises ConfigError."""
    path = parts.transformer
    state = weights.open_files(weights_of(path))
    if path.is_file():
        config, state = layouts.transformer(state, path)
    else:
        config = {**places.expect(path, "transformer")}
    found = tuple(lora.read(part.path, part.scale) for part in profile.lora)
    for part in found:
        state = lora.apply(part, state)
    return Recipe(path, config, state, found)


def choose(
    recipe: Recipe,
    profile: Profile,
    settings: EngineSettings,
    device: str,
    *,
    beside: int,
    pixel: int = plans.PIXEL_VALUES,
) -> Choice:
    """The memory plan by what is free now; said in the log. See plans.Load."""
    variant, size = profile.kind, memory.dtype_for(device).itemsize
    need = plans.Load(
        weights=plans.count({name: weight.shape for name, weight in recipe.state.items()}),
        size=size,
        beside=beside,
        width=recipe.state["x_embedder.weight"].shape[0],
        tokens=(variant.native_tile // variant.unit) ** 2 + variant.text_length,
        pixel=pixel,
    )
    choice = plans.choose(need, memory.room(device), settings.memory)
    log.info("memory plan of %s: %s, %s", variant.name, choice.plan, choice.why)
    return choice


def build(
    recipe: Recipe, dtype: torch.dtype, holding: Holding, tick: Callable[[int, int], None]
) -> nn.Module:
    """The transformer with its weights where ``holding`` wants them, or its next plan does.

    Raises ConfigError; an error of memory once no plan is left.
    """
    from diffusers import FluxTransformer2DModel

    while True:
        with torch.device("meta"):
            module = FluxTransformer2DModel.from_config(dict(recipe.config))
        check_shapes(recipe.path, module, recipe.state)
        try:
            return fill(module, recipe.state, dtype, holding, tick)
        except (RuntimeError, MemoryError) as error:
            if not faults.is_memory(error) or not holding.step_down():
                raise
            faults.without_frames(error)
        del module
        tidy(holding.device)


def check_shapes(path: Path, module: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise ConfigError if weights are missing, left over, or of another size."""
    expected = module.state_dict()
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    for what, keys in (("lacks", sorted(missing)), ("has unknown", sorted(unknown))):
        if keys:
            raise ConfigError(
                f"{path} {what} {len(keys)} weights, as {keys[0]}",
                hint="The file is of another model or truncated; fetch it again.",
            )
    for key, tensor in expected.items():
        if tuple(tensor.shape) != tuple(state[key].shape):
            raise ConfigError(
                f"{path}: {key} has shape {tuple(state[key].shape)}, not {tuple(tensor.shape)}",
                hint="The file is of another model.",
            )


# --- autoencoder ----------------------------------------------------------------------------


def load_vae(path: Path, dtype: torch.dtype, device: str) -> Vae:
    """An autoencoder of either kind from a folder, or FLUX.1's from a file. Raises ConfigError."""
    import diffusers

    state: State
    if path.is_file():
        config, found = layouts.vae(weights.open_files(path), path)
        kind = "AutoencoderKL"
        state = {name: weights.held(tensor) for name, tensor in found.items()}
    else:
        config = {**places.expect(path, "vae")}
        kind = str(config["_class_name"])
        state = weights.open_files(weights_of(path))
    with torch.device("meta"):
        module = getattr(diffusers, kind).from_config(config)
    check_shapes(path, module, state)
    here = Holding(torch.device("cpu"), plans.RESIDENT, lower=False)
    filled = fill(module, state, torch.float32, here, lambda done, total: None)
    layout = torch.channels_last if device == "cpu" else torch.contiguous_format
    return Vae.of(cast(Any, filled).to(device=device, memory_format=layout), dtype)


def check_fit(config: Mapping[str, Any], vae: Vae, variant: Variant, parts: Parts) -> None:
    """Raise ConfigError unless transformer, autoencoder and variant belong together."""
    taken, guided = int(config["in_channels"]), bool(config.get("guidance_embeds"))
    cells = int(config.get("out_channels") or taken)
    if cells != vae.channels * variant.packing**2:
        raise ConfigError(
            f"{parts.transformer} makes {cells} channels a token, but {parts.vae} "
            f"needs {vae.channels} x {variant.packing}^2",
            hint="Name the autoencoder of this very model as engine.vae.",
        )
    if vae.factor != variant.vae_factor:
        raise ConfigError(
            f"{parts.vae} shrinks by {vae.factor}, but {variant.name} expects {variant.vae_factor}",
            hint="Choose the variant that the model is of.",
        )
    if taken != (2 * cells if variant.uses_sources else cells) and not parts.bundled:
        raise ConfigError(
            f"{parts.transformer} takes {taken} channels, unlike {variant.name}",
            hint="Choose the variant that the model is of; FLUX.1 Fill, Canny and Depth are none.",
        )
    if variant.has_text and guided != variant.has_guidance:
        raise places.wrong_variant(parts.transformer, guided=guided)


# --- text -----------------------------------------------------------------------------------


def text_source(
    parts: Parts,
    recipe: Recipe,
    settings: EngineSettings,
    variant: Variant,
    *,
    device: str,
    dtype: torch.dtype,
    state_dir: Path | None,
    files: Mapping[str, str],
) -> TextSource:
    """How prompts become states."""
    width = recipe.state["context_embedder.weight"].shape[1]
    pooled = recipe.state["time_text_embed.text_embedder.linear_1.weight"].shape[1]
    if parts.text is None:
        return no_text(width, pooled, device, dtype)
    # in an all-in-one checkpoint the encoders have no hash of their own
    own = {k: v for k, v in files.items() if k.startswith(("clip", "t5", "transformer"))}
    return FluxText(
        places=parts.text,
        identity=tuple(own[k] for k in sorted(own) if not k.startswith("transformer"))
        or tuple(own.values()),
        length=variant.text_length,
        widths=(width, pooled),
        short=settings.text_tokens == "short",
        device=torch.device(device),
        dtype=dtype,
        cache=TensorCache(state_dir / "text", MOST_STORED) if state_dir else None,
    )
