"""Work that is tried again with more memory, as long as more can be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fluxwatchd.engine import faults
from fluxwatchd.engine.model import Model

Done = TypeVar("Done")


def _nothing() -> bool:
    return False


def patiently(
    model: Model, work: Callable[[], Done], smaller: Callable[[], bool] = _nothing
) -> Done:
    """Do ``work``; whenever memory is short, once more in smaller pieces, or by the next plan.

    ``smaller`` makes the pieces smaller and says whether it could. Raises what ``work`` raises,
    and its error of memory once no plan is left.
    """
    failed: BaseException | None = None
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not faults.is_memory(error):
                raise
            failed = faults.without_frames(error)
        # outside the handler, whose traceback would keep the failed attempt's tensors alive
        if not smaller() and (model.holding is None or not model.holding.relieve()):
            raise failed
