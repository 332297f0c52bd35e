"""Engines on a host's other devices, each with a thread in which it helps with large pictures.

For those who do one picture after the other; the daemon's stations have pictures of their own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Self

from fluxwatchd.config import Profile
from fluxwatchd.engine import Engine
from fluxwatchd.engine.shares import Board, Offer, Share
from fluxwatchd.errors import EngineLost, FluxwatchdError, Interrupted

log = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between two looks at the board, if nobody rings."""


class Helpers:
    """Loads what ``profile`` needs on every one of ``engines``, and helps until it is closed.

    One that cannot load it is left out. It closes the engines.
    """

    def __init__(self, engines: Sequence[Engine], profile: Profile) -> None:
        self._engines, self._profile = engines, profile
        self._called = threading.Condition()
        self._over = threading.Event()
        self._lost: EngineLost | None = None
        self._ready = 0
        self._board = Board(self._ring)
        self._threads = [
            threading.Thread(target=self._serve, args=(one,), name=f"helper-{i}", daemon=True)
            for i, one in enumerate(engines)
        ]

    def offer(self, name: str) -> Offer | None:
        """What to offer the tiles of the picture ``name`` by; None without other engines."""
        return partial(self._board.offer, name) if self._engines else None

    def check(self) -> None:
        """Raise the EngineLost of an engine whose device broke."""
        if self._lost is not None:
            raise self._lost

    @property
    def ready(self) -> int:
        """Engines that have loaded."""
        return self._ready

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ring()
        for thread in self._threads:
            thread.join()

    def _ring(self) -> None:
        with self._called:
            self._called.notify_all()

    def _beat(self, stage: str, done: int, total: int) -> None:
        if self._over.is_set():
            raise Interrupted("the pictures are done")

    def _serve(self, engine: Engine) -> None:
        """One engine's thread."""
        try:
            with engine:
                engine.warm(self._profile, self._beat)
                with self._called:
                    self._ready += 1
                self._help(engine)
        except Interrupted:
            pass
        except EngineLost as error:
            self._lost = error
            log.critical("the engine on another device is lost: %s", error)
        except FluxwatchdError as error:
            log.warning("%s does not help: %s", engine.device, error)

    def _help(self, engine: Engine) -> None:
        while not self._over.is_set():
            with self._called:
                share = self._find(engine)
                if share is None:
                    self._called.wait(LOOK)
                    continue
            if not engine.help(share, self._beat, leave=self._over.is_set):
                share.declined.add(engine)

    def _find(self, engine: Engine) -> Share | None:
        """The first that it can help with."""
        shares = (share for _, share in self._board.open())
        return next((share for share in shares if engine not in share.declined), None)
