"""The layers of a profile: what each table says, where it says it, and who wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fluxwatchd.config.describe import default
from fluxwatchd.config.document import read_side_document
from fluxwatchd.config.lines import KeyPath
from fluxwatchd.config.schema import SIZE_KEYS, Profile
from fluxwatchd.config.tables import TableReader
from fluxwatchd.errors import ConfigError, Problem

SIDE_FILE = "fluxwatchd.toml"
"""The name of the file in an inbox that sets how its pictures are made."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set: a table's name, and its file and line where there is one."""

    name: str
    file: Path | None = None
    line: int | None = None

    def __str__(self) -> str:
        if self.file is None:
            return self.name
        place = f"{self.file}:{self.line}" if self.line is not None else str(self.file)
        return f"{place} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class Layer:
    """The profile keys that one table sets: checked values, as TOML has them, and their places."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layers:
    """Every layer of a configuration file. ``folders`` is by inbox."""

    defaults: Layer = Layer()
    profiles: Mapping[str, Layer] = field(default_factory=dict)
    folders: Mapping[Path, Layer] = field(default_factory=dict)
    overrides: Layer = Layer()


@dataclass(frozen=True, slots=True)
class Explained:
    """An effective value and where it was set."""

    value: Any
    origin: Origin


def read_layer(reader: TableReader, path: KeyPath, raw: Mapping[str, Any], name: str) -> Layer:
    """The layer that the table at ``path`` makes; its problems go to the reader."""
    document = reader.document
    values = reader.values(Profile, path, raw)
    origins = {key: Origin(name, document.file, document.line((*path, key))) for key in values}
    return Layer(values, origins)


def side_layers(inbox: Path, relative: Path) -> tuple[Layer, ...]:
    """The layers that lie in the inbox: one a folder on the way down, and one for the picture.

    ``relative`` is the picture's path below the inbox. Raises ConfigError with every problem of
    every such file.
    """
    ways_down = [inbox.joinpath(*relative.parent.parts[:depth]) for depth in _depths(relative)]
    picture = inbox / relative
    files = [folder / SIDE_FILE for folder in ways_down]
    files.append(picture.with_name(picture.name + ".toml"))
    layers: list[Layer] = []
    problems: list[Problem] = []
    for file in files:
        try:
            document = read_side_document(file)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        if document is None:
            continue
        reader = TableReader(document)
        layers.append(read_layer(reader, (), document.data, ""))
        problems.extend(reader.problems)
    if problems:
        raise ConfigError(
            tuple(problems),
            hint="Mend that file; `retry` a picture that failed because of its own.",
        )
    return tuple(layers)


def _depths(relative: Path) -> range:
    return range(len(relative.parent.parts) + 1)


def merge(layers: Iterable[Layer]) -> Layer:
    """All layers in one; a later value wins, and one size key puts out the others."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for layer in layers:
        if any(_is_size(key, value) for key, value in layer.values.items()):
            for key in SIZE_KEYS:
                values.pop(key, None)
                origins.pop(key, None)
        values.update(layer.values)
        origins.update(layer.origins)
    return Layer(values, origins)


def _is_size(key: str, value: Any) -> bool:
    return key in SIZE_KEYS and not isinstance(value, str)


def resolve(layers: Iterable[Layer]) -> Profile:
    """The profile that the layers make, the variant's defaults filled in.

    Raises ConfigError where values that are good alone do not fit together.
    """
    merged = merge(layers)
    try:
        return Profile.model_validate(dict(merged.values)).resolved()
    except ValidationError as error:
        problems = tuple(
            _conflict(merged, str(found["ctx"]["key"]), found["msg"], found["ctx"]["allowed"])
            for found in error.errors(include_url=False)
        )
        raise ConfigError(problems, hint="Change one of the two settings.") from error


def resolve_whole(layers: Iterable[Layer]) -> Profile:
    """The same for all the layers that a picture has: with its scale, the overlap is judged too."""
    merged = merge(layers)
    profile = resolve((merged,))
    most = profile.largest_overlap()
    if most is None or not isinstance(profile.overlap, int) or profile.overlap <= most:
        return profile
    message = f"{profile.overlap} leaves nothing of a tile at scale {profile.scale:g}"
    problem = _conflict(merged, "overlap", message, f"integer, 0 to {most}")
    raise ConfigError(
        (problem,), hint="Set a smaller overlap, or leave it to auto: an eighth of the tile."
    )


def _conflict(merged: Layer, key: str, message: str, allowed: str) -> Problem:
    origin = merged.origins[key]
    return Problem(origin.file, origin.line, key, message, allowed)


def explain(layers: Iterable[Layer]) -> dict[str, Explained]:
    """Every key of the profile that the layers make, with where its value was set."""
    merged = merge(layers)
    profile = resolve((merged,))
    variant = Origin(f"default of {profile.variant}")
    explained = {}
    for key, field_info in Profile.model_fields.items():
        value = getattr(profile, key)
        if key in merged.origins:
            origin = merged.origins[key]
        elif key in profile.kind.defaults or (key == "model" and value):
            origin = variant
        else:
            origin = Origin("default")
        explained[key] = Explained(default(field_info) if value is None else value, origin)
    return explained
