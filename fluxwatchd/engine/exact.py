"""Algorithms that repeat to the byte, for a while and in one thread.

torch's own switches are the whole process's: what the thread of one device sets back, that of
another has lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class MathAttention(TorchFunctionMode):
    """Attention by the formula itself, as sdpa_kernel(SDPBackend.MATH) has it, in this thread.

    torch leaves it while it is in autograd.grad: what is computed again there needs it anew.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """torch calls every function of its own by this."""
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *given: Any,
    **more: Any,
) -> Tensor:
    """The same arguments as torch's function."""
    made: Sequence[Tensor] = torch._scaled_dot_product_attention_math(
        query, key, value, *given, **more
    )
    return made[0]


_lock = threading.Lock()
_inside = 0
_before = False


@contextmanager
def repeatable() -> Iterator[None]:
    """Attention by its formula, and convolutions by what does not depend on who was sooner.

    The switch for convolutions is one for all threads: it goes back once the last has left. For a
    forward pass, all that another device may be at meanwhile, it takes nothing away.
    """
    global _inside, _before  # noqa: PLW0603 - so is torch's
    with _lock:
        if not _inside:
            _before = torch.backends.cudnn.deterministic
            torch.backends.cudnn.deterministic = True
        _inside += 1
    try:
        with MathAttention():
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.backends.cudnn.deterministic = _before
