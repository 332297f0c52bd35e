"""``status``, ``explain``, ``retry``, ``hold``, ``release``, ``cancel``: the journal and people."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from fluxwatchd.commands import explaining, sections, statuses
from fluxwatchd.commands.options import NAMED, config_option
from fluxwatchd.config import Settings, answers, load, state_folder
from fluxwatchd.errors import ConfigError, JobFailed
from fluxwatchd.journal import Explained, Journal, NoJournal, RequestKind, Snapshot
from fluxwatchd.printing import printable

ASKED = "asked for; `fluxwatchd explain` tells what comes of it"
SHOWN, LOOKED_AT = 20, 200
"""Rows of each table of ``status``, and how many are looked at for those that still stand."""
_file = NAMED


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def status(config: Path | None, as_json: bool) -> None:
    """What is running, waiting and failed, and what to do about it.

    Works whether the daemon runs or not. `fluxwatchd explain FILE` tells more of one file.
    """
    settings, now = _lenient(config), time.time()
    snapshot = _snapshot(settings)
    if as_json:
        click.echo(json.dumps(statuses.as_json(snapshot, now), indent=2))
        return
    for line in statuses.headline(snapshot.live, settings, now):
        click.echo(printable(line))
    sections.show(statuses.sections(snapshot, settings, now))


@click.command()
@click.argument("file", type=_file)
@config_option
def explain(file: Path, config: Path | None) -> None:
    """What became of FILE, why, and what to do: a picture, a result, or a record of one."""
    settings = load(config, places=False)
    place = explaining.place_of(settings, file)
    known, live = Explained(place.path, (), None, ()), statuses.empty().live
    with _journal(settings) as journal:
        if journal is not None:
            known, live = journal.explain(place.path), journal.snapshot(limit=0).live
    click.echo(explaining.Teller(settings, live, time.time()).explain(place, known))


def _request_command(
    kind: RequestKind, help_text: str, *, inside: tuple[str, ...]
) -> click.Command:
    """A command that leaves a request in the journal for each file that lies ``inside``."""

    @click.command(kind, help=help_text)
    @click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_file)
    @config_option
    def command(files: tuple[Path, ...], config: Path | None) -> None:
        settings = load(config, places=False)
        places = [explaining.place_of(settings, file) for file in files]
        for file, place in zip(files, places, strict=True):
            if place.folder is None or place.is_root or place.role not in inside:
                where = " or ".join(f"`{role}`" for role in inside)
                raise click.UsageError(f"{printable(file)} lies in no {where} folder.")
            _expect_answer(place)
            failed = place.folder.failed_path / place.relative
            if not os.path.lexists(place.path) and not (kind == "retry" and failed.exists()):
                raise click.UsageError(f"There is no {printable(file)}.")
            if place.path.is_dir():
                raise click.UsageError(f"{printable(file)} is a folder; name its files.")
        with Journal.open(settings.daemon.state_dir) as journal:
            for place in places:
                journal.request(kind, place.path)
            up = statuses.is_up(journal.snapshot(limit=1).live)
        later = ASKED if up else "done when the daemon runs next"
        for place in places:
            click.echo(f"{kind} {printable(place.path)}: {later}")

    return command


retry = _request_command(
    "retry",
    "Put failed FILEs back into their inbox and forget their attempts; or try a waiting one now.",
    inside=("failed", "inbox"),
)
hold = _request_command(
    "hold", "Leave FILEs waiting in their inbox until they are released.", inside=("inbox",)
)
release = _request_command("release", "Let held FILEs go on.", inside=("inbox",))
cancel = _request_command(
    "cancel", "End or skip FILEs and set them aside in the failed folder.", inside=("inbox",)
)


def _expect_answer(place: explaining.Place) -> None:
    """Raise JobFailed for a file on a share that hangs: nobody can look whether it is there."""
    try:
        answers.expect([place.path])
    except answers.Silent as silence:
        raise JobFailed(
            f"{silence.place} does not answer, so {place.path} cannot be looked at",
            hint=answers.BRING_BACK,
        ) from silence


def _lenient(config: Path | None) -> Settings:
    """The configuration, or only where its state folder is: it may be in the middle of a change.

    Says on stderr what is wrong then. Raises ConfigError where not even that is known.
    """
    try:
        return load(config, places=False)
    except ConfigError as error:
        settings = state_folder(config)
        if settings is None:
            raise
        for line in f"note: the configuration has mistakes: {error}".splitlines():
            click.echo(printable(line), err=True)
        return settings


@contextlib.contextmanager
def _journal(settings: Settings) -> Iterator[Journal | None]:
    """The journal to look into; None where no daemon has run yet."""
    try:
        journal = Journal.open(settings.daemon.state_dir, read_only=True)
    except NoJournal:
        yield None
        return
    with journal:
        yield journal


def _snapshot(settings: Settings) -> Snapshot:
    """What the journal knows, but for failures that somebody took away or had tried again."""
    with _journal(settings) as journal:
        if journal is None:
            return statuses.empty()
        found = journal.snapshot(LOOKED_AT)
    there = [row for row in found.failed if row.moved_to is None or not _is_gone(row.moved_to)]
    return replace(
        found,
        failed=tuple(there[:SHOWN]),
        recent=found.recent[:SHOWN],
        waiting=found.waiting[:SHOWN],
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_gone(path: Path) -> bool:
    """Whether somebody took a file out of its folder; a share that is away says nothing."""
    try:
        answers.expect([path.parent], answers.HASTE)
        path.lstat()
    except FileNotFoundError:
        return _is_folder(path.parent)
    except OSError:
        return False
    return False
