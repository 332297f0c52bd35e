"""What every test needs: the helpers of this folder, and turns where tests run side by side."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TURNS = "FLUXWATCHD_TEST_TURNS"

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the engine does, before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:  # for the daemons that tests start, too
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Make the two files by whose locks the workers of one run take turns."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="fluxwatchd-turns-")
        for name in ("gate", "room"):
            Path(folder.name, name).touch()
        os.environ[TURNS] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Let an ``alone`` test wait until no other runs, and let none begin beside it."""
    alone = item.get_closest_marker("alone") is not None
    turns = Path(os.environ[TURNS])
    with (turns / "gate").open() as gate, (turns / "room").open() as room:
        fcntl.flock(gate, fcntl.LOCK_EX)  # so that whoever waits to be alone is not overtaken
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # by name: a child of the test may have it open
