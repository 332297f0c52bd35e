"""``fluxwatchd check``: every problem of a configuration."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from fluxwatchd.commands.options import config_option
from fluxwatchd.config import Profile, Settings, load
from fluxwatchd.errors import ConfigError


@click.command()
@config_option
def check(config: Path | None) -> None:
    """Tell everything that is wrong with a configuration: file, line, key, what is allowed.

    Ends with 0 where nothing is, else with 78. Makes no folder and loads no model.
    """
    settings = load(config)
    _refuse_outboxes(settings)
    _refuse_models(settings)
    for note in (*settings.notes(), *_missing_programs(settings)):
        click.echo(f"note: {note}", err=True)
    count = len(settings.folders)
    click.echo(f"{settings.file}: good, {count} folder{'s' if count != 1 else ''}")
    for folder in settings.folders:
        profile = settings.folder_profile(folder)
        click.echo(f"  {folder.inbox} -> {folder.outbox} ({profile.variant}, {_size(profile)})")


def _missing_programs(settings: Settings) -> Iterator[str]:
    """Commands of folders whose program is not there."""
    for folder in settings.folders:
        for key in ("on_done", "on_failed"):
            command = getattr(folder, key)
            if command and shutil.which(command[0]) is None:
                yield f"{folder.inbox}: {key}: there is no program {command[0]!r}"


def _refuse_outboxes(settings: Settings) -> None:
    """Try each outbox that is there already: results must never be able to replace a file.

    Raises ConfigError.
    """
    from fluxwatchd.config.document import read_document
    from fluxwatchd.delivery.files import supports_commit

    assert settings.file is not None  # noqa: S101 (a required configuration has one)
    document = read_document(settings.file)
    problems = tuple(
        document.problem(
            ("folder", number, "outbox"),
            f"the filesystem of {folder.outbox} can neither link nor rename without overwriting",
            "a folder on another filesystem",
        )
        for number, folder in enumerate(settings.folders)
        if folder.outbox.is_dir() and not supports_commit(folder.outbox)
    )
    if problems:
        raise ConfigError(problems, hint="Choose an outbox on another filesystem.")


def _refuse_models(settings: Settings) -> None:
    """Look at every file that a folder's pictures need, at its table of contents alone.

    What is to come from the hub is looked at where the cache has it. Raises ConfigError.
    """
    from fluxwatchd.config.document import read_document
    from fluxwatchd.engine import hub, places

    assert settings.file is not None  # noqa: S101 (a required configuration has one)
    document, problems = read_document(settings.file), []
    for number, folder in enumerate(settings.folders):
        profile = settings.folder_profile(folder)
        if not profile.kind.has_model:
            continue
        try:
            parts = places.survey(profile, settings.engine, hub.only_cached)
            if parts.eyes.to_come is not None:
                click.echo(f"note: {folder.inbox}: {parts.eyes.to_come}", err=True)
        except hub.NotHere as error:
            click.echo(f"note: {folder.inbox}: {error}", err=True)
        except ConfigError as error:
            said = f"its pictures cannot be made: {error.told}"
            problems.append(document.problem(("folder", number), said))
    if problems:
        raise ConfigError(
            tuple(problems), hint="Mend these; `fluxwatchd doctor` looks at the whole machine."
        )


def _size(profile: Profile) -> str:
    if profile.target_long_side is not None:
        return f"longer side {profile.target_long_side} px"
    if profile.target_megapixels is not None:
        return f"{profile.target_megapixels:g} megapixels"
    return f"x{profile.scale:g}"
