"""Where log lines go: coloured on a terminal, to the journal with priorities, else JSON lines."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import IO, Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from fluxwatchd.printing import printable

Target = Literal["terminal", "journal", "json"]

PRIORITIES: Mapping[str, int] = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""sd-daemon(3): what stands in angle brackets before a line is its syslog priority."""

LIBRARIES = ("torch", "diffusers", "transformers")


def configure(level: str = "info", target: Target | None = None) -> None:
    """Send every log line from ``level`` up to stderr, ours and those of the libraries.

    ``target`` is found out where it is None. May be called again, as for a changed level.
    """
    target = target or find_target()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]
    if target != "journal":  # the journal has its own clock
        utc = target == "json"
        form = "iso" if utc else "%H:%M:%S"
        shared.append(structlog.processors.TimeStamper(fmt=form, utc=utc))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # a reload may change the level
    )
    handler = _Stderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(target),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)  # the libraries' chatter; ours is below
    logging.getLogger("fluxwatchd").setLevel(level.upper())
    _route_libraries()


def warn_without_effect(sentences: Iterable[str]) -> None:
    """Say which settings mean nothing to the variant they are set for."""
    log = structlog.get_logger("fluxwatchd.config")
    for sentence in sentences:
        log.warning("setting without effect", what=sentence)


def find_target() -> Target:
    """What stderr is: a terminal, the system's journal, or something else."""
    if sys.stderr.isatty():
        return "terminal"
    return "journal" if _is_journal(os.environ.get("JOURNAL_STREAM", "")) else "json"


def _is_journal(stream: str) -> bool:
    """Whether ``stream`` ("device:inode", systemd.exec(5)) is the stderr that we write to."""
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{stat.st_dev}:{stat.st_ino}"


def _renderers(target: Target) -> list[Processor]:
    if target == "terminal":
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=True, exception_formatter=plain)]
    if target == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.processors.format_exc_info, _journal_line]


def _journal_line(_logger: WrappedLogger, _name: str, event: EventDict) -> str:
    """One record for the journal: the priority before every line of it, key=value after it."""
    level = str(event.pop("level", "info"))
    message = printable(event.pop("event", ""))
    trace = event.pop("exception", None)
    pairs = " ".join(f"{key}={_quoted(value)}" for key, value in event.items())
    lines = [f"{message} {pairs}".strip()]
    lines += str(trace).splitlines() if trace else []
    return "\n".join(f"<{PRIORITIES.get(level, 6)}>{line}" for line in lines)


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not any(c in " \"'=" for c in text)
    return text if text and plain else repr(text)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is now: a progress bar puts itself in its place for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self._lost = 0

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # a plain attribute in the base class
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; the first that works after some that did not is followed by their count."""
        before = self._lost
        super().emit(record)
        if before and self._lost == before:
            self._lost = 0
            structlog.get_logger(__name__).warning("the log could not be written", lines=before)

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on without a log while its disk is full: there is nobody left to tell."""
        if isinstance(sys.exc_info()[1], OSError):
            self._lost += 1
        else:
            super().handleError(record)

    def flush(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()


class _Routed(logging.Logger):
    """A logger that, if it is a library's, will not write past our handler.

    torch, diffusers and transformers hang handlers of their own on theirs and cut them off from
    the root the moment they are imported.
    """

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Leave out a library's."""
        if not self._of_library():
            super().addHandler(hdlr)

    def __setattr__(self, name: str, value: object) -> None:
        """Keep a library connected."""
        super().__setattr__(name, value if name != "propagate" else value or self._of_library())

    def _of_library(self) -> bool:
        return self.name.partition(".")[0] in LIBRARIES


def _route_libraries() -> None:
    """Make loggers that will be made from now on ours, and warnings into log lines."""
    logging.setLoggerClass(_Routed)
    warnings.showwarning = _log_warning


def _log_warning(  # noqa: PLR0917 (the signature of warnings.showwarning)
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    log = structlog.get_logger("fluxwatchd.warnings")
    log.warning(str(message), category=category.__name__, place=f"{filename}:{lineno}")
