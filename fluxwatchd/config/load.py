"""Find a configuration, read it, and report everything that is wrong with it at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fluxwatchd.config.document import Document, parse_document, read_document
from fluxwatchd.config.layers import Layer, Layers, Origin, read_layer
from fluxwatchd.config.lines import KeyPath
from fluxwatchd.config.places import Place, folder_places, place_problems, resolved, unusable
from fluxwatchd.config.schema import DaemonSettings, EngineSettings, Folder, Profile
from fluxwatchd.config.settings import Settings
from fluxwatchd.config.tables import TableReader
from fluxwatchd.errors import ConfigError, Problem

TABLES = ("daemon", "engine", "defaults", "profile", "folder")
COMMAND_LINE = Origin("command line")


def search_path() -> tuple[Path, ...]:
    """Where a configuration is looked for if none is named, in order."""
    named = os.environ.get("FLUXWATCHD_CONFIG")
    if named:
        return (Path(named),)
    return (
        Path("config.toml"),
        Path("~/.config/fluxwatchd/config.toml").expanduser(),
        Path("/etc/fluxwatchd/config.toml"),
    )


def find() -> Path | None:
    """The first configuration of the search path; one named by $FLUXWATCHD_CONFIG must exist."""
    if os.environ.get("FLUXWATCHD_CONFIG"):
        return search_path()[0]
    return next((path for path in search_path() if path.is_file()), None)


def load(
    path: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    required: bool = True,
    places: bool = True,
) -> Settings:
    """Read the configuration at ``path``, or the first of the search path.

    ``overrides`` are settings of the command line: a profile's key, or ``engine.KEY`` or
    ``daemon.KEY``. ``required`` says that a file must be found and must name a folder; otherwise
    the defaults do. ``places`` says that this process must be able to write to the folders now.
    Raises ConfigError with every problem.
    """
    path = path or find()
    if path is not None:
        return _build(read_document(path), overrides or {}, required=required, places=places)
    if required:
        looked = ", ".join(str(place) for place in search_path())
        raise ConfigError(
            f"no configuration found; looked at {looked}",
            hint="Write one with `fluxwatchd init DIR`, or name one with --config.",
        )
    return _build(Document(), overrides or {}, required=False, places=places)


def state_folder(path: Path | None = None) -> Settings | None:
    """Settings of which only the state folder is as the file says, whatever else is wrong in it.

    None where there is no file, or it is no TOML, or has a bad state folder.
    """
    path = path or find()
    if path is None:
        return None
    try:
        document = read_document(path)
    except ConfigError:
        return None
    reader = TableReader(document)
    table = reader.subtable(("daemon",), document.data.get("daemon", {}))
    kept = {key: value for key, value in table.items() if key == "state_dir"}
    daemon = reader.read(DaemonSettings, ("daemon",), kept)
    return None if daemon is None else Settings(file=path, daemon=daemon)


def parse(
    text: str,
    *,
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    required: bool = False,
) -> Settings:
    """The settings that TOML text means, as if it lay in ``file``. Raises ConfigError."""
    document = parse_document(text, file)
    return _build(document, overrides or {}, required=required, places=True)


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words of the command line as overrides; values are TOML, or else plain text.

    Raises ConfigError for a word without ``=``.
    """
    found = {}
    for word in assignments:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {word}: not of the form key=value", hint="Write key=value.")
        found[key.strip()] = _toml_or_text(value.strip())
    return found


def _toml_or_text(value: str) -> Any:
    if re.fullmatch(r"[+-]?\.\d+", value):
        value = value.replace(".", "0.", 1)  # TOML wants the zero, people leave it out
    try:
        read = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    return read["value"] if read.keys() == {"value"} else value


def _build(
    document: Document, overrides: Mapping[str, Any], *, required: bool, places: bool
) -> Settings:
    """Read every table, then judge the whole."""
    reader = TableReader(document)
    for key in document.data:
        if key not in TABLES:
            _unknown_top(reader, key)
    table = {name: reader.subtable((name,), document.data.get(name, {})) for name in TABLES[:4]}
    daemon = reader.read(DaemonSettings, ("daemon",), table["daemon"]) or DaemonSettings()
    engine = reader.read(EngineSettings, ("engine",), table["engine"]) or EngineSettings()
    defaults = read_layer(reader, ("defaults",), table["defaults"], "[defaults]")
    profiles = {
        name: read_layer(
            reader,
            ("profile", name),
            reader.subtable(("profile", name), raw),
            f"[profile.{name}]",
        )
        for name, raw in table["profile"].items()
    }
    found = _folders(reader, profiles, required=required)
    where = resolved(found.places)
    reader.problems.extend(place_problems(document, where, daemon.state_dir))
    if places:
        reader.problems.extend(unusable(document, where, daemon.state_dir))
    settings = Settings(
        file=document.file,
        daemon=daemon,
        engine=engine,
        folders=tuple(found.folders),
        layers=Layers(defaults, profiles, found.layers),
    )
    settings = _overridden(settings, overrides, reader)
    _check_profiles(settings, reader)
    if reader.problems:
        raise ConfigError(
            tuple(sorted(dict.fromkeys(reader.problems), key=_place)),
            hint="Mend these, then run `fluxwatchd check`; docs/profiles.md tells every key.",
        )
    return settings


def _place(problem: Problem) -> tuple[str, int]:
    return (str(problem.file or ""), problem.line or 0)


def _unknown_top(reader: TableReader, key: str) -> None:
    if key in Profile.model_fields:
        reader.add((key,), "stands outside a table", "in [defaults], [profile.NAME] or [[folder]]")
    else:
        reader.unknown((key,), TABLES)


@dataclass(slots=True)
class _Folders:
    """The [[folder]] tables: the whole ones, the profile keys of each, and where all of them lie.

    A table that lacks a key is no Folder, but the places that it does name are judged all the same.
    """

    folders: list[Folder] = field(default_factory=list)
    layers: dict[Path, Layer] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)


def _folders(reader: TableReader, profiles: Mapping[str, Layer], *, required: bool) -> _Folders:
    raw = reader.document.data.get("folder", [])
    if not isinstance(raw, list):
        reader.add(("folder",), "is a single table", "[[folder]], in double brackets")
        raw = []
    if required and not raw:
        reader.add(("folder",), "there is none", "one [[folder]] at least")
    found = _Folders()
    for number, table in enumerate(raw):
        path = ("folder", number)
        _folder(reader, path, reader.subtable(path, table), profiles, found)
    return found


def _folder(
    reader: TableReader,
    path: KeyPath,
    table: Mapping[str, Any],
    profiles: Mapping[str, Layer],
    found: _Folders,
) -> None:
    """Read one [[folder]] table, in which folder keys and profile keys stand side by side."""
    known = (*Folder.model_fields, *Profile.model_fields)
    for key in table.keys() - set(known):
        reader.unknown((*path, key), known)
    own = {key: value for key, value in table.items() if key in Folder.model_fields}
    made = {key: value for key, value in table.items() if key in Profile.model_fields}
    values = reader.values(Folder, path, own)
    layer = read_layer(reader, path, made, "[[folder]]")
    name = values.get("profile")
    if name not in (None, "off", *profiles):
        known_names = ", ".join(profiles) or "none is written"
        reader.add((*path, "profile"), f"there is no [profile.{name}]", known_names)
        del values["profile"]
    found.places.extend(folder_places(path, values))
    if "inbox" in values and "outbox" in values:
        folder = Folder.model_validate(values)
        found.folders.append(folder)
        found.layers[folder.inbox] = layer


def _overridden(settings: Settings, overrides: Mapping[str, Any], reader: TableReader) -> Settings:
    """The settings with the command line's on top."""
    tables: dict[str, dict[str, Any]] = {"daemon": {}, "engine": {}, "": {}}
    line = TableReader(Document())
    for name, value in overrides.items():
        table, _, key = name.rpartition(".")
        if table in tables:
            tables[table][key] = value
        else:
            line.add((name,), "unknown key", "a profile's key, engine.KEY or daemon.KEY")
    daemon = line.values(DaemonSettings, ("daemon",), tables["daemon"])
    engine = line.values(EngineSettings, ("engine",), tables["engine"])
    profile = line.values(Profile, (), tables[""])
    reader.problems.extend(line.problems)
    return settings.model_copy(
        update={
            "daemon": DaemonSettings.model_validate({**dict(settings.daemon), **daemon}),
            "engine": EngineSettings.model_validate({**dict(settings.engine), **engine}),
            "layers": Layers(
                settings.layers.defaults,
                settings.layers.profiles,
                settings.layers.folders,
                Layer(profile, dict.fromkeys(profile, COMMAND_LINE)),
            ),
        }
    )


def _check_profiles(settings: Settings, reader: TableReader) -> None:
    """Values that are good alone but do not fit together, in any profile that can come up."""
    seen = {str(problem) for problem in reader.problems}
    checks: list[Callable[[], Profile]] = [settings.named_profile]
    checks += [partial(settings.named_profile, name) for name in settings.layers.profiles]
    checks += [partial(settings.folder_profile, folder) for folder in settings.folders]
    for check in checks:
        try:
            check()
        except ConfigError as error:
            new = [problem for problem in error.problems if str(problem) not in seen]
            seen.update(str(problem) for problem in new)
            reader.problems.extend(new)
