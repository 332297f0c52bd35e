"""exception -> JobFailed | OutOfMemory | EngineLost | Interrupted; the only classifier."""

from __future__ import annotations

import sys
import traceback

from fluxwatchd.errors import EngineLost, FluxwatchdError, OutOfMemory


def is_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, the host's or the device's, was short."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # never the first to import it
    if torch is None:
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # torch has no class of its own for the host's allocator, only this text
    return type(error) is RuntimeError and "DefaultCPUAllocator: can't allocate" in str(error)


def is_device(error: BaseException) -> bool:
    """Whether the device itself reported ``error``: after that its context is unusable."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)


def classify(error: Exception) -> FluxwatchdError:
    """The error to raise in place of ``error``, with ``error`` as its cause.

    What is not known is EngineLost: a restart is cheap, a drained inbox is not.
    """
    if isinstance(error, FluxwatchdError):
        return error
    if is_memory(error):
        return OutOfMemory(
            f"memory was short even for one tile at a time: {first_line(error)}",
            hint="Set a smaller tile_size, or a smaller scale, or free memory on the device.",
        )
    return EngineLost(
        f"the engine failed unexpectedly: {type(error).__name__}: {first_line(error)}",
        hint="The process ends and systemd starts it again; the log has the traceback.",
        device_gone=is_device(error),
    )


def without_frames(error: BaseException) -> BaseException:
    """The same error, which keeps nothing alive any more that its failed attempt had made."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    return error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
