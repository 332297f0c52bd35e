"""The journal's snapshot as ``status`` shows it: in tables for people, as JSON for programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fluxwatchd.commands.sections import Section, command_line
from fluxwatchd.config import Settings
from fluxwatchd.journal import FileState, Row, Snapshot
from fluxwatchd.printing import printable

WIDEST = 120
"""Characters of a reason in a table."""

JSON_VERSION = 1
"""Of the JSON that ``status --json`` writes; it grows when a field changes its meaning."""


def is_up(live: Mapping[str, Any]) -> bool:
    """Whether the daemon that last spoke still runs: its process is there and is one of ours."""
    pid = live.get("pid")
    if not pid:
        return False
    try:
        return b"fluxwatchd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def headline(live: Mapping[str, Any], settings: Settings, now: float) -> list[str]:
    """What the daemon is doing, and what troubles it; a line each."""
    if not is_up(live):
        return [f"The daemon is not running. Start it: {command_line(settings, 'run')}"]
    devices = ", ".join(live.get("devices", ())) or "no device yet"
    lines = [
        f"The daemon is {live.get('state', 'up')} (process {live['pid']}, "
        f"for {span(now - live['since'])}, on {devices})."
    ]
    if problem := live.get("config_problem"):
        lines.append("The configuration was changed but is not used, because of:")
        lines += [f"  {line}" for line in str(problem).splitlines()]
    lines += [f"Trouble at {place}: {why}" for place, why in live.get("trouble", {}).items()]
    return lines


def sections(snapshot: Snapshot, settings: Settings, now: float) -> list[Section]:
    """Everything below the headline. ``now`` is s since the epoch."""
    live = snapshot.live if is_up(snapshot.live) else {}
    return [
        _folders(live, settings),
        _running(live) if live else _stranded(snapshot, now),
        _unready(live),
        Section(
            "put off or held",
            ("file", "attempts", "why", "next try"),
            tuple(_waiting(inbox, state, now) for inbox, state in snapshot.waiting),
        ),
        Section(
            "failed (`fluxwatchd retry FILE` tries again, `fluxwatchd explain FILE` tells more)",
            ("file", "when", "why", "what to do"),
            tuple(_failed(row, now) for row in snapshot.failed),
        ),
        Section(
            "done lately",
            ("file", "when", "took", "result"),
            tuple(_done(row, now) for row in snapshot.recent),
        ),
        Section(
            "asked for and not done yet",
            ("what", "file"),
            tuple((request.kind, str(request.path)) for request in snapshot.requests),
        ),
    ]


def as_json(snapshot: Snapshot, now: float) -> dict[str, Any]:
    """The whole snapshot as JSON values; times in s since the epoch."""
    plain = _plain(asdict(snapshot))
    return {
        "version": JSON_VERSION,
        "at": now,
        "up": is_up(snapshot.live),
        "daemon": plain["live"],
        "counts": plain["counts"],
        "unfinished": plain["running"],
        "failed": plain["failed"],
        "done": plain["recent"],
        "waiting": [{"inbox": inbox, **state} for inbox, state in plain["waiting"]],
        "requests": plain["requests"],
    }


def span(seconds: float) -> str:
    """A length of time in its two largest units, as in ``3 h 20 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, size in units:
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def when(at: float | None, now: float) -> str:
    """How far ``at`` lies from ``now``, both s since the epoch."""
    if at is None:
        return ""
    return f"{span(now - at)} ago" if at <= now else f"in {span(at - now)}"


def _folders(live: Mapping[str, Any], settings: Settings) -> Section:
    header = ("inbox", "outbox", "state", "waiting", "settling", "held", "ignored")
    if "folders" not in live:
        rows = [
            (str(f.inbox), str(f.outbox), "not watched now", "", "", "", "")
            for f in settings.folders
        ]
        return Section("folders", header, tuple(rows))
    return Section("folders", header, tuple(_folder(folder) for folder in live["folders"]))


def _folder(folder: Mapping[str, Any]) -> tuple[str, ...]:
    state = str(folder["state"])
    if state == "ok":
        reason = f" ({folder['reason']})" if folder["reason"] else ""
        state = f"{folder['mode']}{reason}"
    elif state in ("missing", "unreadable"):
        state = f"paused: {state}"
    ignored = ", ".join(f"{count} {why}" for why, count in folder["ignored"].items())
    problems = "; ".join(folder["problems"][:1])
    if len(folder["problems"]) > 1:
        problems += "; and more, see below"
    return (
        str(folder["inbox"]),
        str(folder["outbox"]),
        f"{state}; {problems}" if problems else state,
        str(folder["pending"]),
        str(folder["settling"]),
        str(folder["held"]),
        ignored,
    )


def _unready(live: Mapping[str, Any]) -> Section:
    """What lies in the inboxes and cannot be taken yet; it is tried again by itself."""
    folders = live.get("folders", ())
    told = [one for folder in folders for one in folder.get("unready", ())]
    rows = [(str(one["file"]), _brief(one["why"]), str(one["remedy"])) for one in told]
    if more := sum(folder.get("unready_count", 0) for folder in folders) - len(told):
        rows.append((f"and {more} more", "", ""))
    return Section(
        "not taken yet, tried again by itself", ("file", "why", "what to do"), tuple(rows)
    )


def unready_at(live: Mapping[str, Any], path: Path) -> Mapping[str, str] | None:
    """Why a file, or a folder above it, cannot be taken yet, as the daemon told; None if it can."""
    names = (str(path), printable(path))
    for folder in live.get("folders", ()) if is_up(live) else ():
        for one in folder.get("unready", ()):
            if any(name == one["file"] or name.startswith(f"{one['file']}/") for name in names):
                return dict(one)
    return None


def _running(live: Mapping[str, Any]) -> Section:
    rows = tuple(
        (_at_hand(job), f"{job['stage']} {job['done']}/{job['total']}", str(job["device"]))
        for job in live.get("running", ())
        if "stage" in job
    )
    return Section("running", ("file", "stage", "device"), rows)


def _at_hand(job: Mapping[str, Any]) -> str:
    """An engine's picture; before the first one it has the model to load."""
    return str(job["file"]) if Path(job["file"]).is_absolute() else "(the model)"


def _stranded(snapshot: Snapshot, now: float) -> Section:
    rows = tuple((str(row.source), when(row.started, now)) for row in snapshot.running)
    return Section("under way when the daemon ended; they run again", ("file", "begun"), rows)


def _waiting(inbox: Path, state: FileState, now: float) -> tuple[str, ...]:
    why = "held back; `fluxwatchd release` lets it go on" if state.held else "an earlier try failed"
    return (str(inbox / state.relative), str(state.attempts), why, when(state.next_try, now))


def _failed(row: Row, now: float) -> tuple[str, ...]:
    again = f"tried again {when(row.next_try, now)}" if row.next_try else row.hint or ""
    why = _brief(row.message or "")
    return (str(row.moved_to or row.source), when(row.finished, now), why, again)


def _brief(message: str) -> str:
    """The first line of a message, cut where it is longer than a column; `explain` has it all."""
    first, *more = message.splitlines() or [""]
    shown = f"{first} ..." if more else first
    return shown if len(shown) <= WIDEST else f"{shown[: WIDEST - 4]} ..."


def _done(row: Row, now: float) -> tuple[str, ...]:
    took = span(row.finished - row.started) if row.finished is not None else ""
    return (str(row.source), when(row.finished, now), took, str(row.output or ""))


def _plain(value: Any) -> Any:
    """Dataclasses' contents as JSON values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def empty() -> Snapshot:
    """What a state folder without a journal shows: nothing has run yet."""
    return Snapshot(counts={}, live={}, running=(), failed=(), recent=(), waiting=(), requests=())


def moment(at: float) -> str:
    """A time of day as people write it, s since the epoch, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
