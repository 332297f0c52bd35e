"""A house for tests: folders, a configuration, and the real daemon as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PATIENCE = 90.0
"""Seconds after which a test gives up waiting for what must come."""


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What ``condition`` gives as soon as that is true; fails the test if it never is."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {patience:.0f} s in vain for {what}"
        time.sleep(0.02)
    return value


def photo(size: tuple[int, int] = (24, 16), seed: int = 0) -> Image.Image:
    """A small picture with structure, another for every seed."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    noise = np.random.default_rng(seed).normal(0, 0.08, (height, width, 3))
    waves = np.stack([x, y, 0.5 + 0.5 * np.sin((9 + seed % 5) * (x + y))], -1)
    return Image.fromarray((np.clip(waves + noise, 0, 1) * 255).round().astype(np.uint8))


def open_up(path: Path) -> None:
    """Let everybody into ``path``: pytest makes its temporary folders for their owner alone."""
    top = Path(tempfile.gettempdir())
    for folder in (path, *path.parents):
        if folder == top:
            break
        folder.chmod(0o755)


class House:
    """One inbox and its folders below ``root``, and at most one daemon on them."""

    def __init__(self, root: Path, profile: str = 'variant = "lanczos"', daemon: str = "") -> None:
        self.root = root
        self.inbox, self.outbox = root / "in", root / "out"
        self.archive, self.failed = root / "in-archive", root / "in-failed"
        self.config, self.state = root / "config.toml", root / "state"
        self.daemon = daemon or "settle_seconds = 0.2\nsettle_timeout = 1.5"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "log.jsonl"
        self.inbox.mkdir(parents=True, exist_ok=True)
        self.configure(profile)

    def configure(self, profile: str, folder: str = "") -> None:
        """Write the configuration, in one step."""
        text = (
            f'[[folder]]\ninbox = "in"\noutbox = "out"\n{folder}\n[defaults]\n{profile}\n'
            f'[daemon]\nstate_dir = "state"\n{self.daemon}\n'
        )
        aside = self.config.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.config)

    def start(self, *more: str, prefix: Sequence[str] = (), **environment: str) -> House:
        """Start the daemon, by the command ``prefix`` if any; returns once its process runs."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    sys.executable,
                    "-m",
                    "fluxwatchd",
                    "run",
                    "--config",
                    str(self.config),
                    *more,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
        return self

    def run(self, patience: float = PATIENCE, **environment: str) -> int:
        """Run the daemon until it is idle; its exit code."""
        self.start("--until-idle", **environment)
        return self.wait(patience)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for the daemon to end; its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not end\n{self.said()}") from None

    def stop(self, patience: float = PATIENCE) -> int:
        """SIGTERM, and wait."""
        self.signal(signal.SIGTERM)
        return self.wait(patience)

    def signal(self, number: int) -> None:
        """Send the daemon a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End what runs, at once."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(10)

    def ready(self) -> House:
        """Wait until the daemon serves."""
        until(lambda: self.events("ready") or self.ended(), "READY")
        assert not self.ended(), self.said()
        return self

    def ended(self) -> bool:
        """Whether the daemon is gone."""
        return self.process is not None and self.process.poll() is not None

    def said(self) -> str:
        """All that the daemon logged."""
        return self.log.read_text() if self.log.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = [line for line in self.said().splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if line.get("event") == name]

    def drop(self, name: str, seed: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
        """Put a picture into the inbox, in one step."""
        target = self.inbox / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = (
            target.parent / f".aside-{os.getpid()}-{seed}{target.suffix}"
        )  # dot files are ignored
        photo(size, seed).save(aside)
        aside.replace(target)
        return target

    def delivered(self, name: str) -> bool:
        """The picture of that name is whole in the outbox, with its record."""
        return (self.outbox / f"{name}.json").exists() and (self.outbox / name).exists()

    def closed(self, name: str) -> bool:
        """The source lies in archive or failed, and the daemon is done with it."""
        with suppress(OSError):  # a name that leaves no room for a suffix
            return (self.archive / name).exists() or (self.failed / f"{name}.error.json").exists()
        return False

    def record(self, name: str) -> dict[str, Any]:
        """The sidecar of a result."""
        return json.loads((self.outbox / f"{name}.json").read_text())

    def places(self) -> dict[str, list[str]]:
        """Every file below the four folders."""
        found = {}
        for key in ("inbox", "outbox", "archive", "failed"):
            top: Path = getattr(self, key)
            files = (p for p in top.rglob("*") if p.is_file()) if top.exists() else ()
            found[key] = sorted(os.fsencode(p.relative_to(top)).decode("latin-1") for p in files)
        return found
