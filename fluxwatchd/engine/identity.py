"""Which weights ran: the sha256 of every file, kept by path, size and time of change."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fluxwatchd.errors import ConfigError

CHUNK = 64 << 20
"""Bytes that are hashed between two signs of life."""


def _quiet(done: int, total: int) -> None:
    """Nobody wants to know how far it is."""


class Identities:
    """Hashes files once. With a ``folder`` the hashes outlive the process.

    ``tick`` is called with the bytes done and in all while a file is hashed.
    """

    def __init__(self, folder: Path | None, tick: Callable[[int, int], None] = _quiet) -> None:
        self._file = folder / "identities.json" if folder else None
        self._tick = tick
        self._known: dict[str, str] = {}
        if self._file:
            with suppress(OSError, ValueError):  # no cache yet, or a broken one: hash again
                self._known = dict(json.loads(self._file.read_text()))

    def of(self, path: Path) -> str:
        """``sha256:`` and 64 hexadecimal digits of the content."""
        stat = path.stat()
        place = f"{path.resolve()}|"
        key = f"{place}{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self._known:
            found = f"sha256:{self._digest(path, stat.st_size)}"
            older = {known for known in self._known if known.startswith(place)}
            self._known = {k: v for k, v in self._known.items() if k not in older} | {key: found}
            self._save()
        return self._known[key]

    def _digest(self, path: Path, size: int) -> str:
        made, done = hashlib.sha256(), 0
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                made.update(chunk)
                done += len(chunk)
                self._tick(done, size)
        return made.hexdigest()

    def _save(self) -> None:
        """Write aside and rename; a disk that is full costs the cache and nothing else."""
        if not self._file:
            return
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=self._file.parent, suffix=".part")
            with os.fdopen(handle, "w") as stream:
                json.dump(self._known, stream, indent=1)
            Path(aside).replace(self._file)


def weight_files(folder: Path, role: str) -> dict[str, Path]:
    """A folder's safetensors files under ``role``, or ``role/name`` where there are several.

    Raises ConfigError for an index that names a file which is not there.
    """
    files = _indexed(folder) or sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return {role: files[0]}
    return {f"{role}/{file.name}": file for file in files}


STANDARD = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""What diffusers and transformers call the weights that they load by default."""


def _indexed(folder: Path) -> list[Path]:
    """The files by standard names, whole or in shards; empty where there are none."""
    for name in STANDARD:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    """The files that an index names. Raises ConfigError."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{index} cannot be read: {error}", hint="Fetch it again.") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConfigError(
            f"{index.parent} lacks {', '.join(missing)}, which {index.name} names",
            hint="Fetch what is missing, or the whole model again.",
        )
    return [index.parent / name for name in names]
