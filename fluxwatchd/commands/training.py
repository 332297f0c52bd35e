"""``fluxwatchd train``: the trainers, their options read from their dataclasses."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from fluxwatchd.commands.lazy import Entry, LazyGroup

TRAINERS = {
    "nano": Entry("fluxwatchd.training.nano", "The nano model, from a folder of pictures."),
    "dino": Entry("fluxwatchd.training.dino", "The small DINO encoder that goes with nano."),
    "nano-adapter": Entry("fluxwatchd.training.nano_adapter", "nano's DINO adapter alone."),
    "adapter": Entry("fluxwatchd.training.adapter", "A DINO adapter for FLUX.1."),
}


class TrainerGroup(LazyGroup):
    """A trainer is a module whose ``main`` takes a dataclass of options."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a trainer and make a command of it; None where there is no such one."""
        if cmd_name not in self.table:
            return None
        trainer = importlib.import_module(self.table[cmd_name].place)
        kind = get_type_hints(trainer.main)["options"]

        def start(**values: Any) -> None:
            trainer.main(kind(**values))

        return click.Command(cmd_name, callback=start, params=_parameters(kind), help=kind.__doc__)


@click.group(cls=TrainerGroup, table=TRAINERS)
def train() -> None:
    """Train the nano model, its DINO encoder, or a DINO adapter for FLUX.1."""


def _parameters(kind: Any) -> list[click.Parameter]:
    """A command-line option for every field of the dataclass ``kind``."""
    hints = get_type_hints(kind)
    return [_parameter(field, hints[field.name]) for field in dataclasses.fields(kind)]


def _parameter(field: dataclasses.Field[Any], hint: Any) -> click.Option:
    kind = next((part for part in get_args(hint) if part is not type(None)), hint)
    flag = field.name.replace("_", "-")
    required = field.default is dataclasses.MISSING
    return click.Option(
        [f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}", field.name],
        type=click.Path(path_type=Path) if kind is Path else kind,
        default=None if required else field.default,
        required=required,
        show_default=True,
        help=field.metadata.get("help"),
    )
