"""Garbage collection in slack only: a collection inside a tick is a deadline at risk. No torch."""

from __future__ import annotations

import gc
import threading

YOUNG_NS = 2_000_000
FULL_NS = 40_000_000
FULL_EVERY = 600
FORCE_AFTER = 50
"""Ticks without slack after which a young collection runs all the same: memory is bounded too."""

_lock = threading.Lock()
_owners = 0


class SlackCollector:
    """Takes automatic collection over from `start` to `stop`.

    Everything alive at `start` is frozen: no later collection walks the model. Several runtimes of
    a process share this; the last to stop gives automatic collection back, if it was on.
    """

    _was_enabled = True

    def __init__(self) -> None:
        self._started = False
        self._since_full = 0
        self._starved = 0

    def start(self) -> None:
        global _owners
        with _lock:
            gc.collect()
            gc.freeze()
            if _owners == 0:
                SlackCollector._was_enabled = gc.isenabled()
                gc.disable()
            _owners += 1
            self._started = True

    def stop(self) -> None:
        global _owners
        with _lock:
            if not self._started:
                return
            self._started = False
            _owners -= 1
            if _owners == 0:
                gc.unfreeze()
                if SlackCollector._was_enabled:
                    gc.enable()

    def in_slack(self, slack_ns: int) -> None:
        """After a tick's outputs are out: collects as much as the slack allows."""
        if not self._started:
            return
        self._since_full += 1
        self._starved += 1
        if self._since_full >= FULL_EVERY and slack_ns > FULL_NS:
            gc.collect()
            self._since_full = self._starved = 0
        elif slack_ns > YOUNG_NS or self._starved >= FORCE_AFTER:
            gc.collect(0)
            self._starved = 0
