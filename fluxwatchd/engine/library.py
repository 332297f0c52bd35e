"""transformers' own loading, by one thread at a time: it changes what is the whole process's.

While it loads, torch's default dtype is the model's in every thread, and weights are made without
values; two that load at once get each other's settings, and may leave them behind.
"""

from __future__ import annotations

import threading
from typing import Any

_loading = threading.Lock()


def from_pretrained(kind: Any, *source: Any, **settings: Any) -> Any:
    """``kind.from_pretrained(...)``; waits while another thread loads. Raises what that raises."""
    with _loading:
        return kind.from_pretrained(*source, **settings)
