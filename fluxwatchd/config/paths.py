"""Paths as a configuration writes them: ``~`` expanded, relative to the file that names them."""

from __future__ import annotations

import os
from pathlib import Path

from fluxwatchd.config import answers

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".sft")


def absolute(text: str, base: Path) -> Path:
    """The absolute path that ``text`` means in a file in ``base``; links are left as they are.

    Raises ValueError with a sentence where it means none.
    """
    if not text:
        raise ValueError("is empty")
    if "\0" in text:
        raise ValueError("holds a zero byte")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"names no user's home: {text}") from error
    return Path(os.path.abspath(base / path))  # noqa: PTH100 (resolve() would follow links)


def weights(text: str, base: Path) -> str:
    """The absolute path of a weights file or folder, or a hub id as it was.

    It is a path if it looks like one (``/``, ``./``, ``../``, ``~``, a weights' suffix) or if such
    a file exists. Raises ValueError where it looks like a path and nothing is there.
    """
    named = text.startswith(("/", "./", "../", "~")) or text.endswith(WEIGHT_SUFFIXES)
    path = absolute(text, base)
    if os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a name that is too long)
        return str(path)
    if named:
        raise ValueError(f"there is no file or folder {path}")
    return text


def real(path: Path) -> Path:
    """``path`` with every link in it followed, as far as it exists; a loop stays as it is.

    So does a path on a share that does not answer.
    """
    lexical = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)
    try:
        answers.expect([lexical], answers.HASTE)
    except answers.Silent:
        return lexical
    return Path(os.path.realpath(path))
