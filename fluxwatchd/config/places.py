"""Checks of the folders on the disk: which may not lie in which, and which can be used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from fluxwatchd.config import answers
from fluxwatchd.config.document import Document
from fluxwatchd.config.lines import KeyPath
from fluxwatchd.config.paths import real
from fluxwatchd.errors import Problem

PLACE_KEYS = ("inbox", "outbox", "archive", "failed")


class Place(NamedTuple):
    """A folder that a [[folder]] table names: the table, the key and its path."""

    table: KeyPath
    key: str
    path: Path
    recursive: bool


def folder_places(table: KeyPath, values: Mapping[str, Any]) -> Iterator[Place]:
    """The places of one [[folder]] table, from those of its values that are good."""
    recursive = values.get("recursive", True)
    named = {key: values[key] for key in PLACE_KEYS if isinstance(values.get(key), Path)}
    if inbox := named.get("inbox"):
        named.setdefault("archive", inbox.with_name(inbox.name + "-archive"))
        named.setdefault("failed", inbox.with_name(inbox.name + "-failed"))
    if values.get("on_success", "archive") != "archive":
        named.pop("archive", None)
    for key, path in named.items():
        yield Place(table, key, path, recursive)


def resolved(places: Sequence[Place]) -> list[Place]:
    """The same with every link in their paths followed; see real()."""
    answers.begin(place.path for place in places)  # all at once: of several shares each may hang
    return [place._replace(path=real(place.path)) for place in places]


def place_problems(document: Document, places: Sequence[Place], state_dir: Path) -> list[Problem]:
    """Everything that is wrong with where the folders lie, seen from each other."""
    inboxes = [place for place in places if place.key == "inbox"]
    return [
        *_shared_inboxes(document, inboxes),
        *_inside_inboxes(document, places, inboxes),
        *_state_inside(document, state_dir, inboxes),
    ]


def unusable(document: Document, places: Sequence[Place], state_dir: Path) -> Iterator[Problem]:
    """The folders that this process can neither write to nor make, as they are now."""
    answers.begin(place.path for place in places)
    for place in places:
        if wrong := _why_unusable(place.path):
            yield _problem(document, place, wrong, "a folder that can be written or made")
    if wrong := _why_unusable(real(state_dir)):
        yield document.problem(
            ("daemon", "state_dir"), wrong, "a folder that can be written or made"
        )


def _problem(document: Document, place: Place, message: str, allowed: str) -> Problem:
    return document.problem((*place.table, place.key), message, allowed)


def _name(place: Place) -> str:
    return ".".join(str(part) for part in place.table)


def _shared_inboxes(document: Document, inboxes: Sequence[Place]) -> Iterator[Problem]:
    for first, second in combinations(inboxes, 2):
        if first.path == second.path:
            message = f"{second.path} is the inbox of {_name(first)} too"
            yield _problem(document, second, message, "an inbox of its own")
            continue
        for inner, outer in ((first, second), (second, first)):
            if outer.recursive and inner.path.is_relative_to(outer.path):
                message = f"{inner.path} lies inside the inbox of {_name(outer)}"
                yield _problem(
                    document, inner, message, "a place outside, or recursive = false there"
                )


def _inside_inboxes(
    document: Document,
    places: Sequence[Place],
    inboxes: Sequence[Place],
) -> Iterator[Problem]:
    """Results or sources set down where they would be taken in again."""
    for place in places:
        for inbox in inboxes:
            if place.key == "inbox":
                continue
            if place.path.is_relative_to(inbox.path):
                message = f"{place.path} lies inside the inbox {inbox.path}"
                yield _problem(document, place, message, "a place outside every inbox")
            elif (
                place.table == inbox.table
                and inbox.recursive
                and inbox.path.is_relative_to(place.path)
            ):
                message = f"{place.path} holds the inbox, and a sub-folder's files may land in it"
                yield _problem(document, place, message, "a place beside the inbox")


def _state_inside(
    document: Document, state_dir: Path, inboxes: Sequence[Place]
) -> Iterator[Problem]:
    for inbox in inboxes:
        if real(state_dir).is_relative_to(inbox.path):
            yield document.problem(
                ("daemon", "state_dir"),
                f"{state_dir} lies inside the inbox {inbox.path}",
                "a place outside every inbox",
            )


def _why_unusable(path: Path) -> str:
    """Why no files can be put into ``path``, made if need be; empty where they can."""
    try:
        answers.expect([path])
    except answers.Silent as silence:
        return f"{silence.place} does not answer"
    standing = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not standing.is_dir():
        return f"{standing} is no folder"
    if not os.access(standing, os.R_OK | os.W_OK | os.X_OK):
        made = "written" if standing == path else f"made: {standing} cannot be written"
        return f"{path} cannot be {made}"
    return ""
