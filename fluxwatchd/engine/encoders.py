"""Prompts to token ids, and the text encoders themselves: CLIP's and T5's, from any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from fluxwatchd.engine import layouts, library, weights
from fluxwatchd.engine.faults import first_line
from fluxwatchd.engine.hub import has_tokenizer, no_tokenizer
from fluxwatchd.errors import ConfigError

CLIP_LENGTH = 77
CLIP_START, CLIP_END, T5_END, T5_PAD = 49406, 49407, 1, 0
"""Token ids of openai/clip-vit-large-patch14 and google/t5-v1_1-xxl: enough for an empty prompt."""


def clip_ids(prompt: str, tokenizer: Path | None) -> Tensor:
    """(1, 77) token ids for CLIP; the empty prompt needs no tokenizer."""
    if not prompt and not _there(tokenizer):
        return torch.tensor([[CLIP_START] + [CLIP_END] * (CLIP_LENGTH - 1)])
    words = _tokenizer(tokenizer, "clip")
    out = words(
        prompt, padding="max_length", max_length=CLIP_LENGTH, truncation=True, return_tensors="pt"
    )
    ids: Tensor = out.input_ids
    return ids


def t5_ids(prompt: str, tokenizer: Path | None, length: int, *, short: bool) -> Tensor:
    """(1, length) token ids for T5, or with ``short`` as many as needed, a multiple of 8."""
    own = [T5_END]
    if prompt or _there(tokenizer):
        words = _tokenizer(tokenizer, "t5")
        own = words(prompt, max_length=length, truncation=True).input_ids
    size = min(length, -(-len(own) // 8) * 8) if short else length
    return torch.tensor([own + [T5_PAD] * (size - len(own))])


def _there(tokenizer: Path | None) -> bool:
    return tokenizer is not None and has_tokenizer(tokenizer)


def _tokenizer(folder: Path | None, which: str) -> Any:
    """The tokenizer in ``folder``. Raises ConfigError if there is none."""
    from transformers import AutoTokenizer

    if folder is None or not has_tokenizer(folder):
        raise no_tokenizer(which, folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer in {folder} cannot be loaded: {first_line(error)}",
            hint="Fetch the folder again.",
        ) from error


def load_clip(path: Path, dtype: torch.dtype) -> Any:
    """CLIP's text model from a folder or a file. Raises ConfigError."""
    from transformers import CLIPTextConfig, CLIPTextModel

    if not path.is_file():
        return _from_folder(CLIPTextModel, path, dtype)
    sizes, state = layouts.clip(weights.open_files(path), path)
    config = CLIPTextConfig(**sizes)
    with torch.device("meta"):
        names = CLIPTextModel(config).state_dict().keys()
    # transformers 4 has the prefix in its names, transformers 5 has not
    prefix = "text_model." if all(name.startswith("text_model.") for name in names) else ""
    state = {prefix + name: tensor for name, tensor in state.items()}
    return _from_state(CLIPTextModel, config, state, path, dtype)


def load_t5(path: Path, dtype: torch.dtype) -> Any:
    """T5's encoder from a folder or a file. Raises ConfigError."""
    from transformers import T5Config, T5EncoderModel

    if not path.is_file():
        return _from_folder(T5EncoderModel, path, dtype)
    config, state = layouts.t5(weights.open_files(path), path)
    return _from_state(T5EncoderModel, T5Config(**config), state, path, dtype)


def _from_folder(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """transformers' own loading, safetensors only."""
    try:
        module, report = library.from_pretrained(
            kind, folder, dtype=dtype, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"the text encoder in {folder} cannot be loaded: {first_line(error)}",
            hint="Name FLUX.1's text encoders as engine.clip and engine.t5.",
        ) from error
    _whole(folder, report)
    return module.eval()


def _from_state(kind: Any, config: Any, state: Any, path: Path, dtype: torch.dtype) -> Any:
    """The same from a file's tensors."""
    try:
        module, report = library.from_pretrained(
            kind, None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the text encoder {path} cannot be loaded: {first_line(error)}",
            hint="Name FLUX.1's text encoders as engine.clip and engine.t5.",
        ) from error
    _whole(path, report)
    return module.eval()


def _whole(path: Path, report: Any) -> None:
    """Raise ConfigError if weights are missing: what is missing would be random."""
    if report["missing_keys"]:
        raise ConfigError(
            f"{path} lacks {len(report['missing_keys'])} weights, "
            f"as {sorted(report['missing_keys'])[0]}",
            hint="The file is of another model or truncated; fetch it again.",
        )
