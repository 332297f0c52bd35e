"""ComfyUI's ``models`` folder: which of the many files in it are FLUX.1's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fluxwatchd.engine import contents
from fluxwatchd.engine.contents import AUTOENCODER, CLIP, T5, TRANSFORMER, Contents
from fluxwatchd.errors import ConfigError
from fluxwatchd.variants import Variant

TRANSFORMERS = ("unet", "diffusion_models", "checkpoints")
ROLES = {
    "vae": (("vae",), ("ae.safetensors",), AUTOENCODER),
    "clip": (("clip", "text_encoders"), ("clip_l.safetensors",), CLIP),
    "t5": (
        ("clip", "text_encoders"),
        (
            "t5xxl_fp16.safetensors",
            "t5xxl_bf16.safetensors",
            "t5xxl_fp8_e4m3fn_scaled.safetensors",
            "t5xxl_fp8_e4m3fn.safetensors",
            "t5xxl_fp8.safetensors",
        ),
        T5,
    ),
}
"""For each part: the folders it lies in, its usual names, the best first, and what it is."""
INSIDE = {
    "vae": ("vae.", "first_stage_model."),
    "clip": ("text_encoders.clip_l.transformer.",),
    "t5": ("text_encoders.t5xxl.transformer.",),
}
"""What names begin with, by part, in an all-in-one checkpoint."""
LATENT_CHANNELS = 16
"""FLUX.1's; an autoencoder of another model has others."""
CLIP_WIDTH = 768
"""clip_l's; clip_g, which is not FLUX.1's, is wider."""
SUFFIXES = {".safetensors", ".sft", ".gguf"}


def is_root(folder: Path) -> bool:
    """Whether a folder is laid out as ComfyUI's ``models``."""
    if (folder / "model_index.json").exists() or (folder / "transformer").is_dir():
        return False
    return any((folder / name).is_dir() for name in TRANSFORMERS)


def root_of(file: Path) -> Path | None:
    """The ComfyUI folder that a transformer's file lies in, if it does."""
    for folder in file.parents:
        if folder.name in TRANSFORMERS and (folder.parent / "vae").is_dir():
            return folder.parent
    return None


def holds(held: Contents, role: str) -> bool:
    """Whether an all-in-one checkpoint brings this part."""
    starts = INSIDE.get(role, ())
    return held.kind == TRANSFORMER and any(name.startswith(starts) for name in held.shapes)


def transformer(root: Path, variant: Variant) -> Path:
    """The one FLUX.1 transformer or checkpoint for ``variant``. Raises ConfigError."""
    found = []
    for file in _files(root, TRANSFORMERS):
        held = _contents(file)
        if held and held.kind == TRANSFORMER and held.guided == variant.has_guidance:
            found.append(file)
    usual = [file for file in found if file.name == f"flux1-{variant.name}.safetensors"]
    chosen = usual or found
    folders = ", ".join(f"{name}/" for name in TRANSFORMERS)
    if not chosen:
        raise ConfigError(
            f"{root} has no FLUX.1 {variant.name} transformer in {folders}",
            hint=f"Put flux1-{variant.name}.safetensors there, or name the file itself as model.",
        )
    if len(chosen) > 1:
        names = ", ".join(str(file.relative_to(root)) for file in chosen)
        raise ConfigError(
            f"{root} has several transformers for {variant.name}: {names}",
            hint="Name the one that you want, its file and not the folder, as model.",
        )
    return chosen[0]


def part(root: Path, role: str) -> Path:
    """FLUX.1's autoencoder or a text encoder: by its usual name, else the only one of its kind.

    Raises ConfigError.
    """
    folders, usual, kind = ROLES[role]
    files = list(_files(root, folders))
    for name in usual:
        named = [file for file in files if file.name == name]
        if named:
            return named[0]
    fitting = [file for file in files if fits(_contents(file), role, kind)]
    where = " or ".join(f"{root / name}/" for name in folders)
    if not fitting:
        raise ConfigError(
            f"{kind} for FLUX.1 is missing in {where}",
            hint=f"Put {usual[0]} there, or set engine.{role}.",
        )
    if len(fitting) > 1:
        names = ", ".join(str(file.relative_to(root)) for file in fitting)
        raise ConfigError(
            f"{root} has several that may be {kind} for FLUX.1: {names}",
            hint=f"Set engine.{role} to the one that you want.",
        )
    return fitting[0]


def fits(held: Contents | None, role: str, kind: str) -> bool:
    """Whether a file is FLUX.1's own of its kind, by its sizes."""
    if held is None or (held.kind != kind and not holds(held, role)):
        return False
    if role == "vae":
        name = next(name for name in held.shapes if name.endswith("decoder.conv_in.weight"))
        return held.shapes[name][1] == LATENT_CHANNELS
    if role == "clip":
        name = next(name for name in held.shapes if name.endswith("token_embedding.weight"))
        return held.shapes[name][1] == CLIP_WIDTH
    return True


def _contents(file: Path) -> Contents | None:
    """A file's contents; None for one that is broken, which is no business of ours here."""
    try:
        return contents.read(file)
    except ConfigError:
        return None


def _files(root: Path, folders: Sequence[str]) -> Iterator[Path]:
    """Every weights file below these folders, links followed, in the order of their names."""
    for folder in folders:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                yield file
