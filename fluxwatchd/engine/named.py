"""What a setting names: a path here, or a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from fluxwatchd.engine import hub
from fluxwatchd.engine.contents import refuse_pickle
from fluxwatchd.errors import ConfigError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
EVERYTHING = ("*",)
"""All of a repository, as far as it is ever fetched."""


def is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub: owner/name."""
    return HUB_ID.fullmatch(name) is not None


def find(name: str, key: str, what: str, fetch: hub.Fetch) -> Path:
    """The file or folder that ``name`` means; of a hub id the folder that ``fetch`` gives.

    ``key`` is the setting and ``what`` its value in words. Raises ConfigError.
    """
    path = Path(name).expanduser()
    refuse_pickle(path)
    if path.exists():
        return path
    if path.is_absolute() or not is_hub_id(name):
        raise ConfigError(f"{what} {name!r} does not exist", hint=f"Correct {key}'s path.")
    return fetch(name, EVERYTHING)


def find_file(
    name: str, key: str, what: str, fetch: hub.Fetch, preferred: str | None = None
) -> Path:
    """The same, and of a folder the ``preferred`` file, else the only .safetensors in it."""
    path = find(name, key, what, fetch)
    if not path.is_dir():
        return path
    if preferred is not None and (path / preferred).is_file():
        return path / preferred
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ConfigError(
            f"{what} {name!r} should hold one .safetensors file and holds {names}",
            hint=f"Name the file itself in {key}.",
        )
    return files[0]
