"""Repositories of the Hugging Face hub: fetched once, then found in the cache; no torch."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from fluxwatchd.engine.faults import first_line
from fluxwatchd.errors import ConfigError

HUB_FILES = ("transformer/*", "vae/*", "text_encoder*/*", "tokenizer*/*")
ENDINGS = (".safetensors", ".json", ".txt", ".model")
"""No other kind of file is ever fetched: no pickle, no code."""
REFUSED = (401, 403)

TOKENIZERS = (
    ("black-forest-labs/FLUX.1-schnell", "tokenizer/", "tokenizer_2/"),
    ("black-forest-labs/FLUX.1-dev", "tokenizer/", "tokenizer_2/"),
    ("openai/clip-vit-large-patch14", "", None),
    ("google/t5-v1_1-xxl", None, ""),
)
"""Repositories that hold the tokenizers of CLIP and T5, and in which of their folders."""
WORDS = ("tokenizer.json", "vocab.json", "spiece.model")
"""Files of which a tokenizer has one."""


def fetch(name: str, folders: Sequence[str] = HUB_FILES) -> Path:
    """A repository's folder, downloaded where it is not cached; safetensors and JSON only.

    HF_HUB_OFFLINE=1 keeps it to the cache. Raises ConfigError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=_patterns(folders)))
    except GatedRepoError as error:
        raise _gated(name) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{name!r} is neither a path here nor a public repository on the hub",
            hint=f"Check the spelling; if it is private ({page(name)}), set HF_TOKEN.",
        ) from error
    except (EntryNotFoundError, HFValidationError, OSError) as error:
        # where a repository may not even be listed, the refusal is the cause of "not found"
        for each in (error, error.__cause__):
            if isinstance(each, HfHubHTTPError) and each.response.status_code in REFUSED:
                raise _gated(name) from error
        raise _out_of_reach(name, error) from error


class Fetch(Protocol):
    """Gives a repository's folder; ``folders`` are globs of what is wanted of it."""

    def __call__(self, name: str, folders: Sequence[str] = ...) -> Path:
        """Raise ConfigError if it cannot be had."""
        ...


class NotHere(ConfigError):
    """A repository that the cache has not: it will be fetched when it is needed."""


def only_cached(name: str, folders: Sequence[str] = HUB_FILES) -> Path:
    """A repository's folder without asking the hub, as :func:`fetch` gives it.

    Raises NotHere, or ConfigError where HF_HUB_OFFLINE says that it will not be fetched either.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    found = None
    with suppress(OSError, HFValidationError):  # not there, not whole, or no repository's name
        patterns = _patterns(folders)
        found = Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
    # tokenizers may have been fetched alone
    if found is None or (folders is HUB_FILES and not (found / "transformer").is_dir()):
        if constants.HF_HUB_OFFLINE:
            raise ConfigError(
                f"{name!r} is not whole in the hub's cache, and HF_HUB_OFFLINE is set",
                hint=f"Connect to the network, or fetch it elsewhere: hf download {name}",
            )
        raise NotHere(
            f"{name} is not whole in the hub's cache and will be fetched at start",
            hint=f"To fetch it now: hf download {name}",
        )
    return found


def _patterns(folders: Sequence[str]) -> list[str]:
    return [f"{folder}{ending}" for folder in folders for ending in ENDINGS]


def cached(name: str, file: str) -> Path | None:
    """One file of a repository in the cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def tokenizers() -> tuple[Path | None, Path | None]:
    """Folders of CLIP's and T5's tokenizers in the cache, None for what is not there."""
    found: list[Path | None] = [None, None]
    for name, *folders in TOKENIZERS:
        for i, folder in enumerate(folders):
            if found[i] is None and folder is not None:
                files = (cached(name, f"{folder}{file}") for file in WORDS)
                found[i] = next((file.parent for file in files if file), None)
    return found[0], found[1]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that can be loaded without a network."""
    return any((folder / file).is_file() for file in WORDS)


def no_tokenizer(which: str, folder: Path | None) -> ConfigError:
    """The error for a prompt that nothing can turn into tokens."""
    where = folder or f"engine.tokenizer, nor in the hub's cache of {TOKENIZERS[0][0]}"
    return ConfigError(
        f"prompt is set, but there is no {which} tokenizer at {where}",
        hint="Set engine.tokenizer to a folder with tokenizer/ and tokenizer_2/ in it, or run: "
        f"hf download {TOKENIZERS[0][0]} --include 'tokenizer*/*'",
    )


def page(name: str) -> str:
    """Where people read about a repository and accept its licence."""
    return f"https://huggingface.co/{name}"


def _gated(name: str) -> ConfigError:
    return ConfigError(
        f"the repository {name!r} is gated: its licence has to be accepted first",
        hint=f"Accept the licence at {page(name)} and set HF_TOKEN to a token of that account.",
    )


def _out_of_reach(name: str, error: Exception) -> ConfigError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        from huggingface_hub.constants import HF_HUB_CACHE

        return ConfigError(
            f"{name!r} cannot be fetched: the disk of the hub's cache, {HF_HUB_CACHE}, is full",
            hint="Free space there, or set HF_HOME to a folder on a larger disk.",
        )
    return ConfigError(
        f"{name!r} is not in the cache and cannot be fetched: {first_line(error)}",
        hint=f"Connect to the network, or fetch it elsewhere: hf download {name}",
    )
