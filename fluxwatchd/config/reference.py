"""The schema as the Markdown tables of docs/profiles.md; ``python -m`` writes them to stdout."""

from __future__ import annotations

import sys

from pydantic import BaseModel

from fluxwatchd.config.describe import allowed, default
from fluxwatchd.config.example import toml_value
from fluxwatchd.config.schema import DaemonSettings, EngineSettings, Folder, Profile

TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Profile keys", Profile),
    ("Folder keys, in `[[folder]]`", Folder),
    ("Daemon keys, in `[daemon]`", DaemonSettings),
    ("Engine keys, in `[engine]`", EngineSettings),
)


def reference() -> str:
    """Every table under its heading."""
    return "\n".join(f"### {title}\n\n{markdown(model)}" for title, model in TABLES)


def markdown(model: type[BaseModel]) -> str:
    """One table: key, default, what is allowed, meaning."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        if field.is_required():
            stated = "none; it must be given"
        elif field.default_factory is not None:
            stated = "see right"
        else:
            stated = f"`{toml_value(default(field))}`"
        rows.append(f"| `{key}` | {stated} | {allowed(model, key)} | {field.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
