"""What a weights file holds, by its table of contents: no tensor is read, no torch imported.

Safetensors: an 8-byte length, then a JSON header (github.com/huggingface/safetensors). GGUF: read
by the ``gguf`` package of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxwatchd.errors import ConfigError

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What other programs put before a transformer's names."""
OTHERS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.")
"""What names begin with, in an all-in-one checkpoint, that are not the transformer's."""
GGUF_EXTRA = "pip install 'fluxwatchd[gguf]'"

TRANSFORMER = "a FLUX.1 transformer"
AUTOENCODER = "an autoencoder"
CLIP = "a CLIP text encoder"
T5 = "a T5 text encoder"
LORA = "a LoRA"

MARKS = (
    (LORA, ("lora_", "_lora.", "_lora1.", ".lora.", "lokr_w1", "hada_w1")),
    ("quantised by bitsandbytes", ("quant_state.bitsandbytes",)),
    ("quantised by Nunchaku", (".qweight",)),
    ("FLUX.2", ("double_stream_modulation",)),
    ("Chroma", ("distilled_guidance_layer",)),
    ("HunyuanVideo", ("individual_token_refiner",)),
    ("a ControlNet", ("controlnet_", "control_model.")),
    ("an SDXL checkpoint", ("conditioner.embedders.", "label_emb.", "add_embedding.linear_1.")),
    ("a Stable Diffusion checkpoint", ("input_blocks.", "down_blocks.0.attentions.")),
    ("Stable Diffusion 3", ("joint_blocks.",)),
    (TRANSFORMER, ("double_blocks.", "single_transformer_blocks.")),
    (AUTOENCODER, ("decoder.conv_in.",)),
    (T5, ("SelfAttention", "enc.blk.")),
    (CLIP, ("embeddings.token_embedding.",)),
)
"""By which parts of its names a file is told; the first that fits is named."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Names of the tensors with shapes (rows first) and dtypes, in the format's own words."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """What the file holds, in words; None if that is not known."""
        return kind_of(self.shapes)

    @property
    def whole(self) -> bool:
        """Whether text encoders or an autoencoder lie beside a transformer in it."""
        return self.kind == TRANSFORMER and any(name.startswith(OTHERS) for name in self.shapes)

    @property
    def guided(self) -> bool:
        """Whether a transformer is guidance-distilled, as dev is."""
        return any("guidance_in." in name or "guidance_embedder." in name for name in self.shapes)


def kind_of(names: Iterable[str]) -> str | None:
    """What tensors of these names make, in words."""
    known = tuple(names)
    for kind, marks in MARKS:
        if any(mark in name for name in known for mark in marks):
            return kind
    return None


def bare(name: str) -> str:
    """A tensor's name without another program's prefix."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def read(path: Path) -> Contents:
    """The table of contents of a .safetensors or .gguf file.

    Raises ConfigError for a file that is missing, truncated, or of another format than it says.
    """
    refuse_pickle(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
            size = stream.seek(0, 2)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="Check the path and its permissions."
        ) from error
    is_gguf, named_so = head[:4] == b"GGUF", path.suffix.lower() == ".gguf"
    if is_gguf and not named_so:
        raise ConfigError(f"{path} is a GGUF file by another name", hint="Rename it to .gguf.")
    if is_gguf:
        return _read_gguf(path)
    if named_so:
        raise ConfigError(f"{path} is no GGUF file{_instead(head)}", hint="Fetch it again.")
    return _read_safetensors(path, head, size)


def refuse_pickle(path: Path) -> None:
    """Raise ConfigError for a file that could run code when it is read."""
    if path.suffix.lower() in PICKLES:
        raise ConfigError(
            f"{path} may be a pickle, which can run code when it is read; it is refused",
            hint="Use the .safetensors file of the same weights.",
        )


def _instead(head: bytes) -> str:
    """What a file of another format is, by its first bytes."""
    found = {
        b"PK\x03\x04": ": it is a zip archive, as PyTorch's pickles are",
        b"\x80": ": it is a pickle",
        b"version https://": ": it is a Git LFS pointer, not the file itself",
        b"<": ": it is a web page",
    }
    if not head:
        return ": it is empty"
    return next((words for start, words in found.items() if head.startswith(start)), "")


def _read_safetensors(path: Path, head: bytes, size: int) -> Contents:
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or length > size - 8 or head[8:9] != b"{":
        reason = _instead(head) or ": truncated, or of another format"
        raise ConfigError(f"{path} is no whole .safetensors file{reason}", hint="Fetch it again.")
    try:
        with path.open("rb") as stream:
            stream.seek(8)
            header: dict[str, Any] = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", {})
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} has a broken header: {error}", hint="Fetch it again.") from error
    if 8 + length + end != size:
        raise ConfigError(
            f"{path} is truncated: it has {size} bytes and should have {8 + length + end}",
            hint="Fetch it again.",
        )
    return Contents(path, shapes, dtypes, metadata)


def _read_gguf(path: Path) -> Contents:
    reader = open_gguf(path)
    return Contents(
        path,
        {t.name: tuple(int(side) for side in reversed(t.shape)) for t in reader.tensors},
        {t.name: t.tensor_type.name for t in reader.tensors},
    )


def open_gguf(path: Path) -> Any:
    """A ``gguf.GGUFReader``. Raises ConfigError for a broken file, or without the package."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError(
            f"{path} is a GGUF file, and the package that reads them is not installed",
            hint=f"Run: {GGUF_EXTRA}",
        ) from error
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, OverflowError, KeyError, OSError) as error:
        raise ConfigError(
            f"{path} is truncated or broken: {error}", hint="Fetch the GGUF file again."
        ) from error


def refuse(contents: Contents, wanted: str, where: str = "") -> ConfigError:
    """The error for a file that holds something else than ``wanted``."""
    kind = contents.kind
    return ConfigError(
        f"{contents.path} is not {wanted}" + (f": it is {kind}" if kind else ""),
        hint=f"Name a file of {wanted}{where}.",
    )
