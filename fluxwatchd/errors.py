"""Every error that fluxwatchd raises on purpose.

::

    FluxwatchdError            exit_code, hint
    |- ConfigError        78   file, line, key, what is allowed; all at once
    |- JobFailed           1   this file only: failed/ and an error.json
    |  |- InputRejected        unreadable, not a picture, too large, animated
    |  |- OutOfMemory          after every plan was tried
    |  `- DeliveryFailed       the result is kept; only the delivery is retried
    |- EngineLost         75   the device is unusable: the process ends, the inbox is untouched
    |- StateLost          75   so is the state folder: likewise
    |  |- StateBlocked         it is full, or held by another program: that may pass
    |  `- StateDamaged         the journal is no longer whole
    `- Interrupted         0   stop or reload: the job goes back

An error says what happened in its message and what to do about it in ``hint``. Errors are told
apart by their class, never by their text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class FluxwatchdError(Exception):
    """An error with words for the person who has to mend it.

    ``exit_code`` is what the process returns if nothing else handles the error; only cli.py acts
    on it. ``hint`` is one sentence in the imperative: the remedy.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def told(self) -> str:
        """Message and remedy as sentences, for where there is one line for both."""
        message = str(self)
        if self.hint and not message.endswith((".", "!", "?")):
            message += "."
        return f"{message} {self.hint}".strip()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration.

    ``line`` counts from 1 and is None where no line can be named (a key that is missing, a value
    from the command line). ``key`` is dotted, as in ``profile.archive.steps``.
    """

    file: Path | None
    line: int | None
    key: str
    message: str
    allowed: str = ""

    def __str__(self) -> str:
        place = str(self.file) if self.file else "command line"
        if self.line is not None:
            place = f"{place}:{self.line}"
        text = f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"
        return f"{text} (allowed: {self.allowed})" if self.allowed else text


class ConfigError(FluxwatchdError):
    """The configuration cannot be used; ``problems`` lists everything that is wrong with it."""

    exit_code = 78

    def __init__(self, problems: tuple[Problem, ...] | str, *, hint: str = "") -> None:
        if isinstance(problems, str):
            problems = (Problem(file=None, line=None, key="", message=problems),)
            message = problems[0].message
        else:
            message = "\n".join(str(problem) for problem in problems)
        super().__init__(message, hint=hint)
        self.problems = problems


class JobFailed(FluxwatchdError):
    """This picture cannot be done. ``transient`` failures are tried again, others are set aside."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", transient: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.transient = transient


class InputRejected(JobFailed):
    """The file is unreadable, no picture, too large, or of a kind that a setting refuses."""


class OutOfMemory(JobFailed):
    """Memory was short under every plan that the device allows."""

    def __init__(self, message: str, *, hint: str = "", transient: bool = True) -> None:
        super().__init__(message, hint=hint, transient=transient)


class DeliveryFailed(JobFailed):
    """The result is made and kept, but could not be put into the outbox yet."""

    def __init__(self, message: str, *, hint: str = "", transient: bool = True) -> None:
        super().__init__(message, hint=hint, transient=transient)


class EngineLost(FluxwatchdError):
    """The device or the model is unusable; only a new process helps.

    ``device_gone``: the device itself failed, so the picture at hand is not to blame.
    """

    exit_code = 75

    def __init__(self, message: str, *, hint: str = "", device_gone: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.device_gone = device_gone


class StateLost(FluxwatchdError):
    """The state folder, or the journal in it, is gone or unusable; only a new process helps."""

    exit_code = 75


class StateBlocked(StateLost):
    """The state folder cannot be written at the moment: its disk is full, or the journal locked."""


class StateDamaged(StateLost):
    """The journal is no database any more, or one with holes in it."""


class Interrupted(FluxwatchdError):
    """A stop was asked for; the job goes back as it was."""

    exit_code = 0
