"""The schema as a commented TOML file: config.example.toml, and what `init` writes."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from functools import partial
from typing import Any

import tomli_w
from pydantic import BaseModel

from fluxwatchd.config.describe import allowed, default
from fluxwatchd.config.schema import DaemonSettings, EngineSettings, Folder, Profile

_HEAD = """\
# fluxwatchd: every key, with its unit, what is allowed and its default.
# Paths are relative to this file; ~ is your home. Check it with: fluxwatchd check
"""
_FOLDER_HEAD = """\
# A watched folder; write one such table for each. A profile's key may stand here too.
"""
_DEFAULTS_HEAD = """\
# How pictures are made, for every folder. Later wins: these < [profile.NAME] < the [[folder]] table
# < fluxwatchd.toml in the inbox or a sub-folder of it < photo.jpg.toml beside photo.jpg.
"""
_PROFILE_TAIL = """\
# A named set of the same keys, for folders that say profile = "web":
#[profile.web]
#format = "webp"
#quality = 85
"""


def example(given: Mapping[str, Any] | None = None, *, commented: bool = False) -> str:
    """A configuration with every key at its default, each with a comment.

    ``given`` are values to write instead, by ``TABLE.KEY``. ``commented`` turns every line that
    only states a default into a comment without a blank, so that taking away the ``#`` sets it.
    """
    values = {
        "daemon.state_dir": "state",
        "folder.inbox": "inbox",
        "folder.outbox": "outbox",
        **(given or {}),
    }
    table = partial(_table, values=values, commented=commented)
    sections = (
        _HEAD,
        _FOLDER_HEAD + table("[[folder]]", Folder),
        _DEFAULTS_HEAD + table("[defaults]", Profile),
        _PROFILE_TAIL,
        table("[daemon]", DaemonSettings),
        table("[engine]", EngineSettings),
    )
    return "\n".join(section.rstrip("\n") + "\n" for section in sections)


def _table(
    header: str, model: type[BaseModel], *, values: Mapping[str, Any], commented: bool
) -> str:
    name = header.strip("[]")
    lines = [header]
    for key, field in model.model_fields.items():
        stated = values.get(f"{name}.{key}")
        mark = "#" if commented and stated is None else ""
        value = default(field) if stated is None else stated
        lines += _comment(field.description or "", allowed(model, key))
        lines.append(f"{mark}{key} = {toml_value(value)}")
    return "\n".join(lines)


def _comment(description: str, permitted: str) -> list[str]:
    text = f"{description} ({permitted})"
    return textwrap.wrap(
        text, 98, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
    )


def toml_value(value: Any) -> str:
    """A value as TOML writes it on the right of an equals sign."""
    plain = [_plain(item) for item in value] if isinstance(value, tuple) else _plain(value)
    return tomli_w.dumps({"value": plain}).partition(" = ")[2].strip()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value if isinstance(value, bool | int | float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(example())
