"""Tensors on disk under a key, bounded, the least used dropped first."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor


class TensorCache:
    """Named tensors under a key, at most ``max_bytes`` in all.

    Safe for several processes: files are written aside and renamed; a file that vanished or is
    broken is a miss. A disk that is full or read-only costs the cache and nothing else.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._bytes = sum(size for _, size, _ in self._files())

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under ``key``, and None if there are none."""
        file = self._file(key)
        try:
            tensors = safetensors.torch.load(file.read_bytes())
            os.utime(file)  # the least recently used is told by its time
        except FileNotFoundError:
            return None
        except (OSError, safetensors.SafetensorError):
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors, from any device; their dtypes stay."""
        data = safetensors.torch.save(
            {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        )
        aside = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            Path(aside).replace(self._file(key))
        except OSError:
            with contextlib.suppress(OSError):
                Path(aside).unlink()
            return
        self._bytes += len(data)
        if self._bytes > self.max_bytes:
            self._evict()

    def _evict(self) -> None:
        """Drop the least used until a tenth is free."""
        files = sorted(self._files())
        self._bytes = sum(size for _, size, _ in files)
        for _, size, file in files:
            if self._bytes <= self.max_bytes * 0.9:
                break
            with contextlib.suppress(OSError):
                file.unlink()
            self._bytes -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for file in self.folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                stat = file.stat()
                found.append((stat.st_mtime, stat.st_size, file))
        return found

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
