"""on_done and on_failed: a folder's own commands, beside the queue, never in its way."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

TIME_LIMIT = 60.0
"""Seconds after which a command is ended."""
TAIL = 400
"""Bytes of a failed command's stderr that the log gets."""
GRACE = 2.0
"""Seconds between asking a command to end and ending it, when the daemon stops."""


class Hooks:
    """Runs a folder's commands one after the other, in a thread of the folder's own.

    A command is an argument vector, run without a shell; what it is about stands in its
    environment: FLUXWATCHD_EVENT (done or failed), FLUXWATCHD_SOURCE, FLUXWATCHD_RESULT,
    FLUXWATCHD_RECORD. A command that fails is logged; the job is what it was.
    """

    def __init__(self, limit: float = TIME_LIMIT) -> None:
        self._limit = limit
        self._pools: dict[Path, ThreadPoolExecutor] = {}
        self._waiting: list[tuple[Future[None], str, Path]] = []
        self._running: dict[Path, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._ending = False

    def run(
        self,
        command: tuple[str, ...],
        event: str,
        *,
        inbox: Path,
        source: Path,
        result: Path | None,
        record: Path,
    ) -> None:
        """Queue ``command``, if there is one, for the folder of ``inbox``; from any thread."""
        if not command:
            return
        environment = {
            **os.environ,
            "FLUXWATCHD_EVENT": event,
            "FLUXWATCHD_SOURCE": os.fspath(source),
            "FLUXWATCHD_RESULT": os.fspath(result) if result else "",
            "FLUXWATCHD_RECORD": os.fspath(record),
        }
        with self._lock:
            if inbox not in self._pools:
                self._pools[inbox] = ThreadPoolExecutor(1, thread_name_prefix="hooks")
            future = self._pools[inbox].submit(self._call, inbox, command, environment)
            self._waiting = [one for one in self._waiting if not one[0].done()]
            self._waiting.append((future, command[0], source))

    def close(self, *, drain: bool) -> None:
        """End. ``drain`` lets every command run first; else the one at hand is ended, too.

        A command that is dropped is told of in the log.
        """
        if not drain:
            for future, command, source in self._waiting:
                if future.cancel():
                    log.warning("hook not run: the daemon stops", command=command, file=str(source))
            with self._lock:
                self._ending = True
                running = list(self._running.values())
            _end([process for process in running if process.poll() is None])
        for pool in self._pools.values():
            pool.shutdown(wait=True)

    def _call(self, inbox: Path, command: tuple[str, ...], environment: dict[str, str]) -> None:
        # A file, for a pipe stays open as long as anything that the command left running has it.
        try:
            with tempfile.TemporaryFile() as stderr:
                process = subprocess.Popen(  # noqa: S603 - the admin's own command, no shell
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                )
                self._begin(inbox, process)
                self._wait(process)
                stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - TAIL))
                tail = stderr.read().decode(errors="replace")
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            log.warning("hook failed", command=command[0], reason=str(error))
            return
        if process.returncode:
            log.warning("hook failed", command=command[0], exit=process.returncode, stderr=tail)

    def _begin(self, inbox: Path, process: subprocess.Popen[bytes]) -> None:
        """A command runs; one that began while the daemon stops is ended at once."""
        with self._lock:
            self._running[inbox] = process
            late = self._ending
        if late:
            _end([process])

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until it ends, or is ended for being late. Raises TimeoutExpired."""
        try:
            process.wait(self._limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask commands to end, with what they started, and end those that do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(OSError):  # it ended by itself meanwhile, or is another user's
                os.killpg(process.pid, number)  # each leads a group
        end = time.monotonic() + GRACE
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(0.02)
        processes = [process for process in processes if process.poll() is None]
