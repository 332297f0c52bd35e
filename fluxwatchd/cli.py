"""The command line; the only place that turns an error into an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any, NoReturn

import click

from fluxwatchd import __version__
from fluxwatchd.commands.lazy import Entry, LazyGroup
from fluxwatchd.errors import ConfigError, FluxwatchdError, Interrupted

INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended: 128 + SIGINT."""

COMMANDS = {
    "run": ("running", "Watch the folders and upscale what is dropped into them."),
    "upscale": ("upscaling", "Upscale files once, without a daemon."),
    "check": ("checking", "Tell everything that is wrong with a configuration."),
    "doctor": ("doctor", "What this machine can run, and what is missing."),
    "init": ("setup", "Write a configuration and its folders."),
    "status": ("jobs", "What is running, waiting and failed."),
    "explain": ("jobs", "What became of one file, why, and what to do."),
    "retry": ("jobs", "Try failed files again."),
    "hold": ("jobs", "Leave files waiting until they are released."),
    "release": ("jobs", "Let held files go on."),
    "cancel": ("jobs", "Set files aside undone."),
    "profile": ("profiles", "The settings that a folder's pictures get."),
    "bench": ("benching", "Measure quality, speed, DINO's effect and seams."),
    "train": ("training", "Train the nano model, its DINO encoder, or an adapter."),
}
"""Each command's module in fluxwatchd.commands and its line of help."""

TABLE = {
    name: Entry(f"fluxwatchd.commands.{module}:{name}", words)
    for name, (module, words) in COMMANDS.items()
}


@click.group(cls=LazyGroup, table=TABLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fluxwatchd")
def cli() -> None:
    """Drop a picture into a folder; a FLUX model upscales it, guided by DINO features.

    Exit codes: 0 done, 1 some job failed, 2 usage, 75 device or state folder lost, 78
    bad configuration.
    """


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # a file name need not be UTF-8, and a message about it must come out all the same
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_flushed(run()))


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code; an error's words go to stderr."""
    try:
        code: Any = cli.main(arguments, prog_name="fluxwatchd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("stopped", err=True)
        return INTERRUPTED
    except OSError as error:
        if not _is_of_output(error):
            raise
        _say(f"the output could not be written: {error.strerror}")
        return 1
    except FluxwatchdError as error:
        tell(error)
        return INTERRUPTED if isinstance(error, Interrupted) else error.exit_code
    return code if isinstance(code, int) else 0


def tell(error: FluxwatchdError) -> None:
    """An error's message and hint, on stderr."""
    if isinstance(error, ConfigError) and any(problem.file for problem in error.problems):
        count = len(error.problems)
        _say(f"{count} problem{'s' if count > 1 else ''} in the configuration:")
    _say(str(error))
    if error.hint:
        _say(f"hint: {error.hint}", fg="cyan")


def _say(words: str, **style: Any) -> None:
    """Words on stderr; where even that is full, the exit code has to do."""
    with contextlib.suppress(OSError):
        click.secho(words, err=True, **style)


def _is_of_output(error: OSError) -> bool:
    """Whether stdout could not take what was written to it: such an error names no file."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _flushed(code: int) -> int:
    """The exit code once all output is written; 1 at least if the disk it goes to is full.

    Python itself would end with 120, and take a log on a full disk for a failure.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # so that nothing is tried again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and _is_of_output(error):
                _say(f"the output could not be written: {error.strerror}")
                code = code or 1
    return code
