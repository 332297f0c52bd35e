"""What the bench commands share: settings from the command line, seeds, errors to exit codes."""

from __future__ import annotations

import hashlib
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import click

from fluxwatchd.bench.metrics import Pixels
from fluxwatchd.bench.report import Shown, save, text_of
from fluxwatchd.config import Profile, parse_assignments
from fluxwatchd.config.document import Document
from fluxwatchd.config.layers import read_layer, resolve
from fluxwatchd.config.tables import TableReader
from fluxwatchd.errors import ConfigError, FluxwatchdError


def profile(settings: Mapping[str, Any], **fixed: Any) -> Profile:
    """A profile of ``settings`` (as TOML has them), ``fixed`` over them, the defaults filled in.

    Raises ConfigError that names every key that is wrong.
    """
    reader = TableReader(Document())
    layer = read_layer(reader, (), {**settings, **fixed}, "--set")
    if reader.problems:
        raise ConfigError(tuple(reader.problems), hint="Correct the --set that names the key.")
    return resolve((layer,))


def seed_for(profile: Profile, small: Pixels) -> int:
    """The seed that ``profile`` asks for; ``content`` is the hash of the small picture's pixels."""
    if profile.seed == "random":
        return secrets.randbits(63)
    if profile.seed == "content":
        digest = hashlib.sha256(f"{small.shape}".encode() + small.tobytes()).digest()
        return int.from_bytes(digest[:8], "big") >> 1
    return profile.seed


save_option = click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PLACE",
    help="Keep the report as PLACE.json and PLACE.md, with the command.",
)


NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
Option = Callable[[Callable[..., None]], Callable[..., None]]
"""What adds an option to a command."""
IMAGES: Mapping[str, Any] = MappingProxyType(
    {"type": click.Path(path_type=Path), "help": "Their folder."}
)
COMMON = (
    click.option("--scale", type=float, default=4.0, show_default=True),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first pictures by name."),
    click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A profile key."),
    click.option("--device", help="As in cpu or cuda:0; the first there is when left out."),
    save_option,
    click.option("--json", is_flag=True, help="JSON instead of tables."),
)


def common(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every measurement, before its own."""
    images: Option = click.option("--images", **IMAGES, required=True)
    return with_images(images)(command)


def with_images(images: Option) -> Option:
    """The same for a measurement with an option ``images`` of its own."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed((images, *COMMON)):
            command = option(command)
        return command

    return add


def carry_out(
    measure: Callable[..., Shown],
    images: Path,
    *,
    pairs: Sequence[str],
    save: Path | None,
    json: bool,
    **options: Any,
) -> None:
    """Run ``measure`` with its command's options; print what it finds and keep it.

    Must run within the command whose line is to be kept.
    """
    report = measure(images, settings=parse_assignments(pairs), **options)
    click.echo(text_of(report, json=json))
    finish(report, save)


def command_line(context: click.Context) -> str:
    """The command that is running, as it is written in a report.

    Options at their defaults, --json and --save are left out; of a path outside the working
    folder only the name is told.
    """
    program = context.info_name or ""
    script = program.endswith(".py")
    words = [f"python benchmarks/{program}" if script else f"fluxwatchd bench {program}"]
    for option in context.command.params:
        name = option.name or ""
        source = context.get_parameter_source(name)
        if name in {"json", "save"} or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        words += _written(option, context.params[name])
    return " ".join(words)


def finish(report: Shown, place: Path | None) -> None:
    """End a measurement's command: keep ``report`` where --save says, with the command itself.

    Must run within the command whose line is to be kept.
    """
    if place is not None:
        save(report, place, command_line(click.get_current_context()))


def _written(option: click.Parameter, value: Any) -> list[str]:
    """An option and its value, or values, as words."""
    if isinstance(value, bool):
        return [option.opts[0] if value else option.secondary_opts[0]]
    words = []
    for one in value if option.multiple else (value,):
        key, equals, text = str(one).rpartition("=")
        words += [option.opts[0], shlex.quote(key + equals + _name(text))]
    return words


def told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` as a report tells them: of a path only the name."""
    return {
        key: _name(value) if isinstance(value, str) else value for key, value in settings.items()
    }


def _name(text: str) -> str:
    return Path(text).name if Path(text).is_absolute() else text


def run_as_script(command: click.Command) -> NoReturn:
    """Run a bench module by itself, as ``python -m fluxwatchd.bench.NAME`` does."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from error
    except click.Abort:
        raise SystemExit(130) from None
    except FluxwatchdError as error:
        click.echo(f"{error}\n{error.hint}".strip(), err=True)
        raise SystemExit(error.exit_code) from error
    raise SystemExit(0)
