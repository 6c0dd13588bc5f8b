"""Clocks and the absolute grid of ticks. Times are integer nanoseconds. No torch."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Protocol

SETTLE_NS = 1_000_000
"""The last stretch before a due time is one plain sleep: a wait that can be interrupted wakes up to
a scheduling quantum late.
"""


class Clock(Protocol):
    """Where ticks get their time.

    by_hand: no clock thread is started; the owner of the runtime calls tick().
    """

    @property
    def by_hand(self) -> bool: ...
    def now(self) -> int: ...
    def wait_until(self, due: int, stop: threading.Event | None = None) -> bool:
        """Returns True at `due` or later, False as soon as `stop` is set."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    by_hand = False

    def now(self) -> int:
        return time.monotonic_ns()

    def wait_until(self, due: int, stop: threading.Event | None = None) -> bool:
        coarse = due - SETTLE_NS - self.now()
        if coarse > 0:
            if stop is None:
                time.sleep(coarse / 1e9)
            elif stop.wait(coarse / 1e9):
                return False
        while (left := due - self.now()) > 0:
            time.sleep(left / 1e9)
        return stop is None or not stop.is_set()


class VirtualClock:
    """Stands still but when told: waiting moves it to the due time, `advance` by as much as asked.

    A tick on it always meets its deadline unless something advances it meanwhile: for tests, and
    wherever only the outputs count.
    """

    by_hand = True

    def __init__(self, start_ns: int = 0) -> None:
        self._now = start_ns

    def now(self) -> int:
        return self._now

    def advance(self, ns: int) -> None:
        """Raises ValueError when ns is negative."""
        if ns < 0:
            raise ValueError(f"time does not run backwards, got {ns} ns")
        self._now += ns

    def wait_until(self, due: int, stop: threading.Event | None = None) -> bool:
        self._now = max(self._now, due)
        return stop is None or not stop.is_set()


class FastClock:
    """Runs like the machine's clock, but waiting takes no time: as fast as the machine allows, with
    honest step times, slack and misses.
    """

    by_hand = True

    def __init__(self) -> None:
        self._skipped = 0

    def now(self) -> int:
        return time.monotonic_ns() + self._skipped

    def wait_until(self, due: int, stop: threading.Event | None = None) -> bool:
        self._skipped += max(0, due - self.now())
        return stop is None or not stop.is_set()


@dataclass(frozen=True)
class Grid:
    """Tick k is due at t0 + k * period, whatever happened before."""

    t0: int
    period: int

    def due(self, tick: int) -> int:
        return self.t0 + tick * self.period

    def deadline(self, tick: int) -> int:
        return self.due(tick + 1)

    def after(self, tick: int, now: int) -> int:
        """The tick that follows `tick` when it is over at `now`: the next, though it starts late,
        as long as it could still end in its own period; the next grid point not yet passed when a
        whole period was lost. A late start costs its lateness; a skip, a tick of media time.

        Worked example, period 100: tick 3 (due 300) over before 500 is followed by 4, which is due
        at 400; over at 501 by 6, and ticks 4 and 5 were skipped.
        """
        if now < self.deadline(tick + 1):
            return tick + 1
        return -((self.t0 - now) // self.period)
