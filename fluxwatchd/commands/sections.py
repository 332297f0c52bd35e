"""Titled tables on stdout: drawn on a terminal, aligned text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import click

from fluxwatchd.config import Settings, find
from fluxwatchd.config.paths import real
from fluxwatchd.printing import printable, quoted


@dataclass(frozen=True, slots=True)
class Section:
    """A title, column names, and rows of text as wide as those."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def show(sections: Iterable[Section]) -> None:
    """Write every section that has a row."""
    for section in sections:
        if section.rows:
            _draw(section) if sys.stdout.isatty() else click.echo(_align(section))


def command_line(settings: Settings, *words: object) -> str:
    """A command to copy: quoted for the shell, with --config unless it is found without."""
    found = find()
    if settings.file is not None and (found is None or real(found) != real(settings.file)):
        words = (*words, "--config", settings.file)
    return " ".join(("fluxwatchd", *map(quoted, words)))


def _align(section: Section) -> str:
    rows = [tuple(printable(cell) for cell in row) for row in (section.header, *section.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join((f"{section.title}:", *(f"  {line}" for line in lines), ""))


def _draw(section: Section) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=section.title, title_justify="left", title_style="bold")
    for name in section.header:
        table.add_column(name, overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)
