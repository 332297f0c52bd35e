"""What became of one file, in words: what, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxwatchd.commands.sections import command_line
from fluxwatchd.commands.statuses import is_up, moment, span, unready_at, when
from fluxwatchd.config import Folder, Settings, answers
from fluxwatchd.config.paths import real
from fluxwatchd.errors import ConfigError
from fluxwatchd.journal import Explained, Row
from fluxwatchd.printing import printable

SPARED = {
    "kept": "The source stays where it was.",
    "deleted": "The source was deleted, as on_success says.",
    "replaced": "Another file has taken the source's place meanwhile; it is a picture of its own.",
    "gone": "The source was taken away meanwhile.",
}
"""What became of a source that was moved nowhere."""

SUFFIXES = {
    "settings": "it is a settings file, for the pictures beside or below it",
    "temporary": "its suffix is that of a file which is still being written",
    "not a picture": "its suffix is that of no picture that can be read",
}
"""What the suffixes that intake passes over mean to a person."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path as the configuration writes it, with the folder and the role that it lies in."""

    path: Path
    folder: Folder | None = None
    role: str = ""

    @property
    def is_root(self) -> bool:
        """Whether it is one of the four folders itself."""
        return self.folder is not None and self.path == roles(self.folder)[self.role]

    @property
    def relative(self) -> Path:
        """The path below the inbox, outbox, archive or failed folder; needs a folder."""
        assert self.folder is not None  # noqa: S101 (our own contract)
        return self.path.relative_to(roles(self.folder)[self.role])


def roles(folder: Folder) -> dict[str, Path]:
    """A folder's four places by what they are called."""
    return {
        "inbox": folder.inbox,
        "outbox": folder.outbox,
        "archive": folder.archive_path,
        "failed": folder.failed_path,
    }


def place_of(settings: Settings, path: Path) -> Place:
    """Where ``path`` lies, links in it followed, in the words of the configuration.

    A record's name (.json, .error.json) stands for the picture's that it tells of, if it lies in
    an outbox or a failed folder.
    """
    where = real(path.parent) / path.name
    found = [
        (real(root), root, folder, role)
        for folder in settings.folders
        for role, root in roles(folder).items()
        if where.is_relative_to(real(root))
    ]
    if not found:
        return Place(where)
    resolved, root, folder, role = max(found, key=lambda entry: len(entry[0].parts))
    below = where.relative_to(resolved)
    if below == Path():
        return Place(root, folder, role)
    for ending in {"failed": (".error.json",), "outbox": (".json",)}.get(role, ()):
        if below.name.endswith(ending) and below.name != ending:
            below = below.with_name(below.name.removesuffix(ending))
    return Place(root / below, folder, role)


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells of files. ``live`` is what the daemon last said; ``now`` is s since the epoch."""

    settings: Settings
    live: Mapping[str, Any]
    now: float

    @property
    def up(self) -> bool:
        """Whether the daemon runs."""
        return is_up(self.live)

    @property
    def troubles(self) -> Mapping[str, str]:
        """The places that the daemon has trouble with now, and why."""
        return self.live.get("trouble") or {}

    def explain(self, place: Place, known: Explained) -> str:
        """A few sentences on the file at ``place``: what, why, and what to do."""
        lines = [printable(place.path), *self._state(place, known)]
        lines += [f"Asked for and not done yet: {request.kind}." for request in known.requests]
        if len(known.rows) > 1:
            lines.append("Earlier:")
            lines += [f"  {_history(row)}" for row in known.rows[1:]]
        return "\n".join(lines)

    def _command(self, *words: object) -> str:
        return command_line(self.settings, *words)

    def _state(self, place: Place, known: Explained) -> Iterator[str]:
        under_way = self.up and known.rows and known.rows[0].state in ("running", "delivering")
        if known.file is not None and known.file.held and not under_way:
            yield "It is held back, because someone asked for it."
            yield f"To let it go on: {self._command('release', place.path)}"
        elif place.role == "inbox" and (unready := unready_at(self.live, place.path)):
            yield f"It cannot be taken yet: {printable(unready['file'])}: {unready['why']}."
            yield unready["remedy"]
            yield "It is tried again by itself."
        elif known.rows:
            yield from self._told(known.rows[0])
            if known.file is not None and known.file.held:
                yield "It is too late to hold it back: it is under way; `cancel` may end it."
        else:
            yield from self._unknown(place)

    def _told(self, row: Row) -> Iterator[str]:
        """The last job that the journal has of a file."""
        if row.state in ("running", "delivering"):
            yield from self._at_work(row)
        elif row.state == "done":
            yield from _done(row)
        elif row.state == "failed":
            yield from self._failed(row)
        else:
            yield f"It was begun at {moment(row.started)} and given back unfinished."
            yield from self._waits("Its folder waits", row)
        if self.up and (why := self.troubles.get(str(row.source))):
            yield f"The source cannot leave its inbox yet: {why}"

    def _waits(self, what: str, row: Row) -> Iterator[str]:
        """What keeps a picture from its outbox, if the daemon runs and says so, or who goes on."""
        outboxes = (f.outbox for f in self.settings.folders if f.inbox == row.inbox)
        if self.up and (why := self.troubles.get(str(next(outboxes, "")))):
            yield f"{what}: {why}"
        else:
            yield self._who_takes_it()

    def _at_work(self, row: Row) -> Iterator[str]:
        if not self.up:
            began = when(row.started, self.now)
            yield f"The daemon ended without warning while at work on it, begun {began}."
            yield f"Nothing is lost; it runs again when the daemon does: {self._command('run')}"
            return
        attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
        since = f"since {span(self.now - row.started)}{attempt}"
        if row.state == "running":
            yield f"It is being upscaled, {since}."
            yield f"Nothing to do; how far it is: {self._command('status')}"
        else:
            yield f"It is upscaled, and its result is being put away, {since}."
            yield from self._waits("It waits", row)

    def _failed(self, row: Row) -> Iterator[str]:
        counted = f"attempt {row.attempt}, " if row.attempt > 1 else ""
        yield f"It failed ({counted}{moment(row.finished or row.started)}): {row.message}"
        if row.hint:
            yield row.hint
        if row.next_try is not None:
            again = f"It is tried again {when(row.next_try, self.now)}."
            yield again if self.up else self._who_takes_it()
            return
        if row.moved_to is not None:
            yield f"The source is safe: {printable(row.moved_to)}"
        yield f"To try it again: {self._command('retry', row.moved_to or row.source)}"

    def _unknown(self, place: Place) -> Iterator[str]:
        """A file of which the journal has no job."""
        if place.folder is None:
            inboxes = ", ".join(str(folder.inbox) for folder in self.settings.folders)
            yield "It lies in no folder of this configuration."
            yield f"Drop pictures into: {inboxes}"
        elif place.is_root:
            yield f"It is the {place.role} folder of {place.folder.inbox}."
            yield f"What is in work there: {self._command('status')}"
        elif silent := _silent(place):
            yield f"{printable(silent)} does not answer, so nobody can look."
            yield answers.BRING_BACK
        elif not place.path.exists():
            yield "There is no such file, and the journal knows of none."
        elif place.role != "inbox":
            yield f"It lies in the {place.role} folder of {place.folder.inbox}."
            yield "No job put it there, so there is nothing to tell of it."
        else:
            yield from self._in_inbox(place.folder, place.relative)

    def _in_inbox(self, folder: Folder, relative: Path) -> Iterator[str]:
        if why := _why_ignored(folder, relative):
            yield f"It is left alone: {why}."
            yield "docs/profiles.md lists what is left alone."
            return
        yield "It waits for its turn; nothing was tried yet."
        yield self._who_takes_it()
        try:
            self.settings.profile_for(folder, relative)
        except ConfigError as error:
            yield f"It will fail, because of its settings: {error}"

    def _who_takes_it(self) -> str:
        if self.up:
            return "Nothing to do: the daemon takes it by itself."
        return f"The daemon is not running; start it: {self._command('run')}"


def _silent(place: Place) -> Path | None:
    """The folder that does not answer, if the file lies on a share that hangs."""
    try:
        answers.expect(place.folder.places if place.folder else [place.path], answers.HASTE)
    except answers.Silent as silence:
        return silence.place
    return None


def _done(row: Row) -> Iterator[str]:
    took = f", in {span(row.finished - row.started)}" if row.finished is not None else ""
    yield f"It was upscaled at {moment(row.finished or row.started)}{took}."
    yield f"The result: {printable(row.output)}"
    yield f"How it was made: {printable(row.output)}.json"
    if row.moved_to is not None:
        yield f"The source: {printable(row.moved_to)}"
    elif row.outcome in SPARED:
        yield SPARED[row.outcome]


def _why_ignored(folder: Folder, relative: Path) -> str | None:
    """Why a file in the inbox is no picture to take; None if it is one."""
    from fluxwatchd.intake.ignore import Rules

    rules = Rules(folder.ignore)
    if not folder.recursive and len(relative.parts) > 1:
        return "it lies in a sub-folder, and this inbox is not recursive"
    for depth, name in enumerate(relative.parts, start=1):
        if reason := rules.reason(name, str(Path(*relative.parts[:depth]))):
            what = "its name" if depth == len(relative.parts) else f"the folder {printable(name)}"
            return f"{what} is ignored ({reason})"
    if (folder.inbox / relative).is_symlink():
        return "it is a symbolic link"
    if not (folder.inbox / relative).is_file():
        return "it is a folder" if (folder.inbox / relative).is_dir() else "it is no regular file"
    reason = rules.suffix_reason(relative.name)
    return SUFFIXES.get(reason, reason) if reason else None


def _history(row: Row) -> str:
    message = f": {row.message}" if row.message else ""
    return f"{moment(row.started)} {row.state}{message}"
