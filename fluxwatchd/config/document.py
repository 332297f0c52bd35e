"""A TOML file and the place of every key in it."""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxwatchd.config.lines import KeyPath, key_lines
from fluxwatchd.errors import ConfigError, Problem

_PLACE = re.compile(r"^(?P<what>.*?)\s*\(at (?:line (?P<line>\d+), column \d+|end of document)\)$")

LONGEST_SIDE = 1 << 20
"""Bytes of the longest settings file that is read from an inbox."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a TOML file says. ``file`` is None for text that lies in no file."""

    file: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int | None:
        """The line of ``path``, or of the nearest table around it that has one."""
        return next(
            (
                self.lines[path[:size]]
                for size in range(len(path), 0, -1)
                if path[:size] in self.lines
            ),
            None,
        )

    def problem(self, path: KeyPath, message: str, allowed: str = "") -> Problem:
        """A problem at ``path``."""
        key = ".".join(str(part) for part in path)
        return Problem(self.file, self.line(path), key, message, allowed)

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self.file.absolute().parent if self.file else Path.cwd()


def read_document(file: Path) -> Document:
    """Read a TOML file. Raises ConfigError where it cannot be read or is no TOML.

    A named pipe would wait for ever for somebody to write into it: it is refused.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError((Problem(file, None, "", "is no regular file"),))
            raw = stream.read()
    except OSError as error:
        raise _unreadable(file, error) from error
    return decode_document(raw, file)


def read_side_document(file: Path) -> Document | None:
    """Read a TOML file that anyone may have put into an inbox; None where there is none.

    A named pipe would wait for ever and a huge file fill the memory: neither is read. Raises
    ConfigError.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise _unreadable(file, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError((Problem(file, None, "", "is no regular file"),))
    with os.fdopen(descriptor, "rb") as stream:
        raw = stream.read(LONGEST_SIDE + 1)
    if len(raw) > LONGEST_SIDE:
        raise ConfigError((Problem(file, None, "", "is too long", f"{LONGEST_SIDE} bytes"),))
    return decode_document(raw, file)


def decode_document(raw: bytes, file: Path | None) -> Document:
    """Read the bytes of a TOML file. Raises ConfigError."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = Problem(file, line, "", "is not UTF-8 text", "TOML in UTF-8")
        raise ConfigError((problem,), hint="Save the file as UTF-8.") from error
    return parse_document(text, file)


def parse_document(text: str, file: Path | None = None) -> Document:
    """Read TOML text. Raises ConfigError, naming the line, where it is no TOML."""
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise ConfigError(
            (_syntax_problem(str(error), text, file),),
            hint="Mend the TOML at that line; text stands in quotes.",
        ) from error
    except RecursionError as error:
        problem = Problem(file, None, "", "is nested too deeply")
        raise ConfigError((problem,), hint="Flatten its lists and tables.") from error
    return Document(file, data, key_lines(text))


def _unreadable(file: Path, error: OSError) -> ConfigError:
    problem = Problem(file, None, "", f"cannot be read: {error.strerror}")
    return ConfigError((problem,), hint="Name a file that exists and may be read.")


def _syntax_problem(sentence: str, text: str, file: Path | None) -> Problem:
    """tomllib tells the place only in its sentence (before Python 3.14)."""
    place = _PLACE.match(sentence)
    if place is None:
        return Problem(file, None, "", f"is not TOML: {sentence}")
    line = int(place["line"]) if place["line"] else text.count("\n") + 1
    return Problem(file, line, "", f"is not TOML: {place['what']}")
