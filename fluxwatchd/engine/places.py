"""Where a model's parts lie, in every layout that people have, checked without reading a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import comfy, contents, eyeplaces, hub, named
from fluxwatchd.engine.contents import AUTOENCODER, CLIP, LORA, T5, TRANSFORMER, refuse_pickle
from fluxwatchd.engine.eyeplaces import Eyes
from fluxwatchd.engine.faults import first_line
from fluxwatchd.engine.identity import weight_files
from fluxwatchd.errors import ConfigError
from fluxwatchd.variants import BUNDLED, Variant

NANO = Path(__file__).parents[1] / "models" / "nano"
DINO_BYTES = 350_000_000
"""What dinov2-base takes, in float32."""
FILES = (".safetensors", ".sft", ".gguf")
TEXT_WEIGHTS = ("context_embedder.weight", "txt_in.weight")
"""The layer that reads text states, in either naming."""
HINT = "Name a .safetensors or .gguf file, a diffusers folder, ComfyUI's models folder or a hub id."


@dataclass(frozen=True, slots=True)
class TextPlaces:
    """Folders or .safetensors files of the encoders; folders of the tokenizers, None if unset."""

    clip: Path
    t5: Path
    clip_tokenizer: Path | None
    t5_tokenizer: Path | None


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a model's parts lie: each a folder in diffusers layout or a file.

    ``text`` is None for models without a text encoder; ``bundled`` says that the folder is ours.
    In an all-in-one checkpoint several parts are the same file. ``eyes`` is for :func:`survey` to
    find.
    """

    transformer: Path
    vae: Path
    text: TextPlaces | None
    bundled: bool = False
    eyes: Eyes = field(default_factory=Eyes)

    @property
    def by_role(self) -> dict[str, Path]:
        """Every part with weights."""
        found = {"transformer": self.transformer, "vae": self.vae}
        return found | ({"clip": self.text.clip, "t5": self.text.t5} if self.text else {})


def find(
    name: str,
    variant: Variant,
    settings: EngineSettings,
    fetch: hub.Fetch = hub.fetch,
) -> Parts:
    """Turn ``model`` into places: ``bundled:nano``, a folder, a file or a hub id.

    ``fetch`` gives the folder of a hub id. Raises ConfigError for what is not there.
    """
    if name == BUNDLED:
        return _folder_parts(NANO, variant, settings, bundled=True)
    path = Path(name).expanduser()
    refuse_pickle(path)
    if path.is_file():
        return _file_parts(path, variant, settings)
    if path.is_dir():
        if comfy.is_root(path):
            chosen = comfy.transformer(path, variant)
            return _file_parts(chosen, variant, settings, root=path)
        return _folder_parts(path, variant, settings)
    if path.suffix in FILES or not named.is_hub_id(name):
        raise ConfigError(f"model {name!r} does not exist", hint=HINT)
    return _folder_parts(fetch(name), variant, settings)


def _folder_parts(
    folder: Path, variant: Variant, settings: EngineSettings, *, bundled: bool = False
) -> Parts:
    """The parts of a diffusers folder; what [engine] names comes first."""
    text = None
    if variant.has_text:
        text = TextPlaces(
            clip=_set_or(settings.clip, folder / "text_encoder"),
            t5=_set_or(settings.t5, folder / "text_encoder_2"),
            clip_tokenizer=_set_or(settings.tokenizer, folder, "tokenizer"),
            t5_tokenizer=_set_or(settings.tokenizer, folder, "tokenizer_2"),
        )
    return Parts(folder / "transformer", _set_or(settings.vae, folder / "vae"), text, bundled)


def _file_parts(
    path: Path, variant: Variant, settings: EngineSettings, root: Path | None = None
) -> Parts:
    """A single file's parts: set in [engine], in the file itself, or in its ComfyUI folder.

    Raises ConfigError for what is nowhere.
    """
    root = root or comfy.root_of(path)
    held = contents.read(path)
    roles = {"vae": settings.vae}
    if variant.has_text:
        roles |= {"clip": settings.clip, "t5": settings.t5}
    found: dict[str, Path] = {}
    for role, given in roles.items():
        if given:
            found[role] = _set_or(given, path)
        elif comfy.holds(held, role):
            found[role] = path
        elif root is not None:
            found[role] = comfy.part(root, role)
    missing = [f"engine.{role}" for role in roles if role not in found]
    if missing:
        raise ConfigError(
            f"model {str(path)!r} holds the transformer alone; {', '.join(missing)} must be set",
            hint="Name their .safetensors files or folders under [engine] in the configuration.",
        )
    text = None
    if variant.has_text:
        text = TextPlaces(found["clip"], found["t5"], *_tokenizers(settings))
    return Parts(path, found["vae"], text)


def _tokenizers(settings: EngineSettings) -> tuple[Path | None, Path | None]:
    """Where a single file's tokenizers lie: as set, else in the hub's cache."""
    if settings.tokenizer:
        folder = Path(settings.tokenizer).expanduser()
        return folder / "tokenizer", folder / "tokenizer_2"
    return hub.tokenizers()


def _set_or(setting: str | None, default: Path, below: str = "") -> Path:
    """The path that is set, checked, or the default; ``below`` is a folder in either."""
    path = Path(setting).expanduser() if setting else default
    refuse_pickle(path)
    return path / below if below else path


# --- checks ---------------------------------------------------------------------------------

KINDS = {
    "transformer": (TRANSFORMER, "model"),
    "vae": (AUTOENCODER, "engine.vae"),
    "clip": (CLIP, "engine.clip"),
    "t5": (T5, "engine.t5"),
}
"""What each part must be, and the setting that names it."""
CLASSES = {
    "transformer": ("_class_name", ("FluxTransformer2DModel",)),
    "vae": ("_class_name", ("AutoencoderKL", "AutoencoderTiny")),
    "clip": ("model_type", ("clip_text_model", "clip")),
    "t5": ("model_type", ("t5",)),
}
"""How its configuration says what a part is, and what it may say."""


def inspect(parts: Parts, variant: Variant) -> None:
    """Raise ConfigError for a part that is missing, truncated, or something else.

    Reads tables of contents and configurations alone: it takes milliseconds, whatever the size.
    """
    for role, path in parts.by_role.items():
        if path.is_file():
            _inspect_file(path, role, variant)
        else:
            _inspect_folder(path, role)


def _inspect_file(path: Path, role: str, variant: Variant) -> None:
    held = contents.read(path)
    wanted, key = KINDS[role]
    if held.kind != wanted and not comfy.holds(held, role):
        raise contents.refuse(held, wanted, f" as {key}")
    if role == "vae" and variant.has_text and not comfy.fits(held, "vae", AUTOENCODER):
        raise ConfigError(
            f"{path} is the autoencoder of another model than FLUX.1: its latents have not "
            f"{comfy.LATENT_CHANNELS} channels",
            hint="Name FLUX.1's as engine.vae: ae.safetensors.",
        )
    if role == "transformer" and variant.has_text and held.guided != variant.has_guidance:
        raise wrong_variant(path, guided=held.guided)


def wrong_variant(path: Path, *, guided: bool) -> ConfigError:
    """The error for schnell's weights as dev, or dev's as schnell."""
    kind, other = ("guidance-distilled, as dev is", "dev") if guided else ("not guided", "schnell")
    return ConfigError(
        f"{path} is {kind}; the variant that is set is not", hint=f'Set variant = "{other}".'
    )


def _inspect_folder(folder: Path, role: str) -> None:
    """A part's folder: configuration, index and shards are there and whole."""
    if not folder.is_dir() and role != "transformer":
        wanted, key = KINDS[role]
        raise ConfigError(
            f"{folder} is missing: {wanted} is needed", hint=f"Set {key}, or fetch the model again."
        )
    expect(folder, role)
    files = weight_files(folder, role)
    if not files:
        for file in sorted(folder.iterdir()):
            refuse_pickle(file)
        raise ConfigError(f"{folder} has no .safetensors file", hint="Fetch the model again.")
    for file in files.values():
        contents.read(file)


def expect(folder: Path, role: str) -> Mapping[str, Any]:
    """A part's configuration. Raises ConfigError if it is one of something else."""
    config, (key, allowed) = read_config(folder), CLASSES[role]
    if config.get(key) not in allowed:
        wanted, setting = KINDS[role]
        raise ConfigError(
            f"{folder / 'config.json'} is a {config.get(key)}, not {' or '.join(allowed)}",
            hint=f"Name {wanted} of FLUX.1 as {setting}.",
        )
    return config


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.json of a part's folder. Raises ConfigError."""
    file = folder / "config.json"
    try:
        return cast("Mapping[str, Any]", json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be read: {first_line(error)}",
            hint="Name a folder in diffusers layout, with transformer/ and vae/ in it.",
        ) from error


def weights_of(path: Path, role: str = "weights") -> dict[str, Path]:
    """The files behind a part's path, by role."""
    return {role: path} if path.is_file() else weight_files(path, role)


def beside(parts: Parts, profile: Profile, size: int) -> int:
    """Bytes that lie on the device beside the transformer, at ``size`` bytes a value."""
    held = [contents.read(file) for file in weights_of(parts.vae).values()]
    inside = comfy.INSIDE["vae"] if parts.vae == parts.transformer else ("",)
    values = sum(
        math.prod(shape)
        for part in held
        for name, shape in part.shapes.items()
        if name.startswith(inside)
    )
    sees = eyeplaces.wants(profile) and not parts.bundled
    return values * size + (DINO_BYTES if sees else 0)


def files_of(parts: Parts) -> Iterable[tuple[str, Path]]:
    """Every weights file once, with its role; a file of several parts counts as the transformer."""
    seen: set[Path] = set()
    for role, path in parts.by_role.items():
        for name, file in weights_of(path, role).items():
            if file not in seen:
                seen.add(file)
                yield name, file


# --- what else a profile names --------------------------------------------------------------


def survey(profile: Profile, settings: EngineSettings, fetch: hub.Fetch = hub.fetch) -> Parts:
    """Find and check everything that a resolved profile names.

    ``fetch`` gives the folder of a hub id. Raises ConfigError.
    """
    variant = profile.kind
    parts = find(profile.model or variant.model, variant, settings, fetch)
    inspect(parts, variant)
    if parts.text is not None and profile.prompt:
        for which, folder in (
            ("clip", parts.text.clip_tokenizer),
            ("t5", parts.text.t5_tokenizer),
        ):
            if folder is None or not hub.has_tokenizer(folder):
                raise hub.no_tokenizer(which, folder)
    for part in profile.lora:
        held = contents.read(find_lora(part.path, fetch))
        if held.kind != LORA:
            raise contents.refuse(held, LORA, " in lora")
    eyes = eyeplaces.find(
        profile,
        own=NANO if parts.bundled else None,
        model="nano" if parts.bundled else variant.name,
        text_width=text_width(parts),
        fetch=fetch,
    )
    return replace(parts, eyes=eyes)


def find_lora(name: str, fetch: hub.Fetch = hub.fetch) -> Path:
    """The file that a LoRA's path, folder or hub id means. Raises ConfigError."""
    return named.find_file(name, "lora", "LoRA", fetch)


def text_width(parts: Parts) -> int:
    """Values of a text state that the transformer reads; 0 where its file tells none."""
    for file in weights_of(parts.transformer).values():
        for name, shape in contents.read(file).shapes.items():
            if contents.bare(name) in TEXT_WEIGHTS and len(shape) == 2:
                return shape[1]
    return 0
