"""The command on a machine whose CPU counts as two devices: ``several.py fluxwatchd ARGUMENTS``.

With ``--breaks FILE`` the second one breaks, as CUDA says it, once FILE exists and it helps.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path


def main():
    """Have two devices and run the command."""
    import torch

    from fluxwatchd.engine import apart, memory

    before = sys.argv[1 : sys.argv.index("fluxwatchd")]
    sys.argv = sys.argv[sys.argv.index("fluxwatchd") :]
    memory.find_devices = lambda settings: ("cpu", "cpu")
    helping, lend, euler = threading.local(), apart.lend, apart.euler

    def lends(*given, **more):
        helping.now = True
        try:
            lend(*given, **more)
        finally:
            helping.now = False

    def steps(*given):
        if before and getattr(helping, "now", False) and Path(before[1]).exists():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return euler(*given)

    apart.lend, apart.euler = lends, steps
    from fluxwatchd.cli import main as command

    command()


if __name__ == "__main__":
    main()
