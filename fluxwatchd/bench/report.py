"""How measurements are shown and kept: Markdown tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from fluxwatchd import __version__
from fluxwatchd.job import Upscaled


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned so that it reads in a terminal too."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, rule)
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in lines
    )


def as_json(report: Any) -> str:
    """``report`` (dataclasses, mappings, sequences) as indented JSON; inf and nan become null."""
    return json.dumps(_plain(report), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Shown(Protocol):
    """A report that has a text of its own."""

    def as_text(self) -> str:
        """Markdown."""
        ...


def text_of(report: Shown, *, json: bool) -> str:
    """What a measurement's command prints: JSON for programs, else Markdown."""
    return as_json(report) if json else report.as_text()


def save(report: Shown, place: Path, command: str) -> None:
    """Keep ``report`` as ``place`` with the suffixes .json and .md, each with its command."""
    place.parent.mkdir(parents=True, exist_ok=True)
    whole = {"command": command, "report": report}
    place.with_suffix(".json").write_text(as_json(whole) + "\n")
    place.with_suffix(".md").write_text(f"`{command}`\n\n{report.as_text()}\n")


def machine() -> dict[str, Any]:
    """What a figure depends on beside its command: the processor, its cores and our libraries."""
    return {
        "fluxwatchd": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "diffusers", "pillow", "numpy")},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _processor() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def ran_line(upscaled: Upscaled) -> str:
    """One line of what ran: the model, in which dtype on what, its files' hashes, and its DINO."""
    checkpoint, did = upscaled.checkpoint, upscaled.dino
    model = checkpoint.model or checkpoint.variant
    if checkpoint.files:
        model += f" in {checkpoint.dtype} on {checkpoint.device_name or checkpoint.device}"
    files = [f"{role} {name[:19]}" for role, name in sorted(checkpoint.files.items())]
    strength = f" {did.strength:g}" if did.mode != "off" else ""
    return ", ".join([model, *files, f"DINO {did.mode}{strength}"])
