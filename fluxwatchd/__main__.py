"""``fluxwatchd`` and ``python -m fluxwatchd``: signals are held back, then the rest is imported."""

import sys
from typing import NoReturn

from fluxwatchd import signals


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    if sys.argv[1:2] == ["run"]:
        signals.hold_back()
    from fluxwatchd import cli  # the rest of the half second

    cli.main()


if __name__ == "__main__":
    main()
