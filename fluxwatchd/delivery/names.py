"""The names that delivery gives: final, numbered, shortened and temporary."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from typing import Final

LONGEST: Final = 255
"""Bytes that a file name may have on the filesystems of Linux."""

RECORD: Final = ".json"
ERROR: Final = ".error.json"

_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<job>[0-9a-f]{16})\.source", re.DOTALL)
_PART = re.compile(r"\.(?P<name>.+)\.(?P<job>[0-9a-f]{16})\.part", re.DOTALL)


def fit(stem: str, tail: str, longest: int = LONGEST) -> str:
    """``stem + tail``, the stem shortened where the whole has more than ``longest`` bytes.

    A shortened stem ends with ``~`` and 8 hexadecimal digits of its hash, so that names that differ
    go on differing; no UTF-8 character is cut in two.
    """
    raw = os.fsencode(stem)
    room = longest - len(os.fsencode(tail))
    if len(raw) <= room:
        return stem + tail
    mark = "~" + hashlib.sha256(raw).hexdigest()[:8]
    end = max(room - len(mark), 0)
    while end and raw[end] & 0xC0 == 0x80:  # a continuation byte follows: step back to its start
        end -= 1
    return os.fsdecode(raw[:end]) + mark + tail


def numbered(stem: str, suffix: str, reserve: str = "") -> Iterator[str]:
    """photo.png, photo.2.png, photo.3.png... each short enough to take ``reserve`` behind it."""
    longest = LONGEST - len(os.fsencode(reserve))
    for number in itertools.count(1):
        yield fit(stem, suffix if number == 1 else f".{number}{suffix}", longest)


def split(name: str) -> tuple[str, str]:
    """A file name's stem and suffix, as pathlib cuts them, for any bytes."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem else (name, "")


def part_name(name: str, job_id: str) -> str:
    """The temporary name beside ``name``: ``.name.jobid.part``."""
    return "." + fit(name, f".{job_id}.part", LONGEST - 1)


def record_part(name: str, job_id: str, ending: str = RECORD) -> str:
    """The temporary name of the record that lies beside ``name``."""
    return "." + fit(name, f"{ending}.{job_id}.part", LONGEST - 1)


def parse_part(name: str) -> tuple[str, str] | None:
    """A temporary name's (name, job id); None if it is not one of ours."""
    found = _PART.fullmatch(name)
    return (found["name"], found["job"]) if found else None


def hidden_name(name: str, job_id: str) -> str:
    """The name under which a source waits for its removal: ``.name.jobid.source``.

    Another than a copy's: what bears it may be the only one there is.
    """
    return "." + fit(name, f".{job_id}.source", LONGEST - 1)


def parse_hidden(name: str) -> tuple[str, str] | None:
    """A hidden source's (name, job id); None if it is none."""
    found = _HIDDEN.fullmatch(name)
    return (found["name"], found["job"]) if found else None


def could_be(name: str, stem: str) -> bool:
    """Whether ``name`` may have been made from ``stem`` by numbered().

    Never wrong where it says no; compares as much as fit() always keeps.
    """
    return os.fsencode(name).startswith(os.fsencode(stem)[:150])
