"""Whom there is time and memory for: a prediction of ticks, and the policy that asks it. No torch.

A tick's work is known before it runs: how many sessions, how many rows, how full their windows. The
cost formulas of a family turn that into a few amounts of work; what they take on this machine is
fitted to ticks that were measured, by warm-up and ever since. Two steps: non-negative least squares
over the amounts, and a rising map from what that says to what was measured at each number of
sessions, which takes up what the formulas do not know (tiles, caches). Both rise with the work, so
a tick of more sessions is never predicted to be shorter.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.bounds import quantile_rank
from microturn.runtime.errors import ConfigError
from microturn.runtime.plan import TickPlan

AGES = 16
"""Steps in which the age of a window is told apart."""

KEPT = 512
"""Ticks remembered for each number of sessions."""

HORIZON_NS = 1800 * 10**9
"""What was measured longer ago is forgotten: a machine that was disturbed recovers."""

ENOUGH = 20
"""Ticks at a number of sessions after which warm-up's are no longer asked about it."""

PRIOR_TAIL = 1.25
"""p99 over p50 until enough ticks were seen to know."""

CONFIDENCE = 0.99
"""That a predicted p99 is not below the true one."""

REFRESH_NS = 10**9

NEVER = 1 << 63

Array = NDArray[np.float64]

log = logging.getLogger("microturn.runtime.admission")


class Load(NamedTuple):
    """What decides how long a tick takes.

    rows  of the append pass, all sessions together
    age   how full the sessions' windows are on average, in `AGES` steps
    patches  of images, among the rows
    """

    sessions: int
    rows: int
    age: int = AGES
    patches: int = 0


Amounts = Callable[[Load], Sequence[float]]
"""Amounts of work in a tick, none of which falls when the load rises."""


def counted(load: Load) -> Sequence[float]:
    """For a family that does not say what it costs: a tick, its sessions, rows, keys, patches."""
    return 1.0, load.sessions, load.rows, load.sessions * load.age, load.patches


class Ages:
    """How full every slot's window is, followed from plan to plan."""

    def __init__(self, window_rows: int, frames: int) -> None:
        """window_rows: rows that fill the longest window; frames: output positions a tick."""
        self._window = max(1, window_rows)
        self._frames = frames
        self._rows: dict[int, int] = {}

    def load(self, plan: TickPlan) -> Load:
        """Of a plan that is about to run."""
        filled = brought = patches = 0
        for row in plan.rows:
            if not row.reset:
                filled += min(self._rows.get(row.slot, 0), self._window)
            brought += row.num_rows
            patches += row.n_patches
        sessions = len(plan.rows)
        age = -(-AGES * filled // (self._window * max(1, sessions)))
        return Load(sessions, brought, age, patches)

    def fill(self, slot: int) -> None:
        """The slot's window is full."""
        self._rows[slot] = self._window

    def advance(self, plan: TickPlan) -> None:
        """The plan ran."""
        made = self._frames - 1
        for row in plan.rows:
            before = 0 if row.reset else self._rows.get(row.slot, 0)
            if before < self._window:
                self._rows[row.slot] = before + row.num_rows + made * row.exec


class _Sample(NamedTuple):
    at: int
    load: Load
    ns: int


class _Level(NamedTuple):
    """What was measured at one number of sessions, in ns: what the amounts say, the median, and by
    how much ticks exceeded it, 1 in 100 or the worst of a few; None when there were too few. known:
    there were enough to tell.
    """

    fitted: float
    median: float
    excess: float | None
    known: bool


class _Fit:
    """An immutable prediction, made of samples."""

    def __init__(self, amounts: Amounts, samples: dict[int, list[_Sample]]) -> None:
        self._amounts = amounts
        loads = sorted({sample.load for its in samples.values() for sample in its})
        by_load: dict[Load, list[int]] = {load: [] for load in loads}
        for its in samples.values():
            for sample in its:
                by_load[sample.load].append(sample.ns)
        table = np.array([amounts(load) for load in loads], np.float64)
        took = np.array([float(np.median(by_load[load])) for load in loads])
        weights = np.array([min(len(by_load[load]), ENOUGH) for load in loads], np.float64)
        self._rates = _rates(table, took, weights)
        fitted = dict(zip(loads, (table @ self._rates).tolist(), strict=True))
        self._levels = self._rising(samples, fitted)

    def p50(self, load: Load) -> float:
        """ns."""
        fitted = float(np.dot(self._amounts(load), self._rates))
        known = list(self._levels.values())
        first, last = known[0], known[-1]
        if fitted <= first.fitted:
            return fitted * first.median / first.fitted
        if fitted >= last.fitted:
            return fitted * last.median / last.fitted
        return float(np.interp(fitted, [n.fitted for n in known], [n.median for n in known]))

    def p99(self, load: Load) -> float:
        """ns."""
        middle = self.p50(load)
        seen = {n: its for n, its in sorted(self._levels.items()) if its.excess is not None}
        known = {n: its for n, its in seen.items() if its.known}
        # A guess counts for nothing where ticks were seen often enough.
        excess = [0.0 if known else (PRIOR_TAIL - 1) * middle]
        excess += [its.excess or 0.0 for n, its in seen.items() if n <= load.sessions]
        if trusted := known or seen:
            first, last = trusted[min(trusted)], trusted[max(trusted)]
            if load.sessions < min(trusted):
                excess.append((first.excess or 0.0) * middle / first.median)
            elif load.sessions > max(trusted):
                excess.append((last.excess or 0.0) * middle / last.median)
        return middle + max(excess)

    def _rising(
        self, samples: dict[int, list[_Sample]], fitted: dict[Load, float]
    ) -> dict[int, _Level]:
        """Medians by number of sessions, in the order of what the amounts say, rising with it."""
        raw = []
        for sessions, its in samples.items():
            said = np.array([fitted[sample.load] for sample in its])
            ratios = np.array([sample.ns for sample in its]) / said
            middle = float(np.median(said))
            raw.append((middle, middle * float(np.median(ratios)), sessions, len(its)))
        raw.sort()
        rising = _isotonic([median for _, median, _, _ in raw], [n for *_, n in raw])
        levels = {}
        for (said_here, _, sessions, count), median in zip(raw, rising, strict=True):
            its = samples[sessions]
            ratio = median / said_here
            over = sorted(sample.ns / (ratio * fitted[sample.load]) for sample in its)
            rank = quantile_rank(count, 0.99, CONFIDENCE)
            worst = over[(rank or count) - 1]
            excess = max(0.0, worst - 1) * median if count >= ENOUGH else None
            levels[sessions] = _Level(said_here, median, excess, rank is not None)
        return levels


class TickPredictor:
    """How long a tick takes, from the work in it and from ticks that were measured.

    Probes and ticks come from one thread, questions from any.
    """

    def __init__(self, amounts: Amounts = counted, *, now: Callable[[], int]) -> None:
        """amounts: see Amounts; now: ns on the clock that ages what was measured."""
        self._amounts = lru_cache(maxsize=4096)(amounts)
        self._now = now
        self._lock = threading.Lock()
        self._probes: dict[int, list[_Sample]] = {}
        self._ticks: dict[int, deque[_Sample]] = {}
        self._fit: _Fit | None = None
        self._stale = False
        self._oldest = NEVER
        self._fitted_at = -NEVER

    def probe(self, load: Load, ns: Sequence[int]) -> None:
        """Warm-up ran ticks of that load; the slowest of several is put down to chance."""
        kept = sorted(ns)[: max(1, len(ns) - 1)]
        with self._lock:
            its = self._probes.setdefault(load.sessions, [])
            its += [_Sample(0, load, max(1, took)) for took in kept]
            self._stale = True

    def observe(self, load: Load, ns: int) -> None:
        """A tick of a running clock took so long, from its beginning until its outputs were out."""
        sample = _Sample(self._now(), load, max(1, ns))
        with self._lock:
            self._ticks.setdefault(load.sessions, deque(maxlen=KEPT)).append(sample)
            self._stale = True

    def ticks(self, sessions: int) -> list[tuple[Load, int]]:
        """The ticks remembered at that number of sessions, and the ns each took."""
        with self._lock:
            return [(sample.load, sample.ns) for sample in self._ticks.get(sessions, ())]

    def p50(self, load: Load, *, wait: bool = True) -> float | None:
        """ns; None as long as nothing was measured. wait=False: as last worked out, for a caller
        who cannot wait until all that was seen since is in it.
        """
        fit = self._current() if wait or self._fit is None else self._fit
        return None if fit is None else fit.p50(load)

    def p99(self, load: Load, *, wait: bool = True) -> float | None:
        """ns that 99 of 100 such ticks do not exceed, with 99 % confidence once 459 ticks at that
        number of sessions were seen; None as long as nothing was measured.
        """
        fit = self._current() if wait or self._fit is None else self._fit
        return None if fit is None else fit.p99(load)

    def refresh(self) -> None:
        """Works out anew what was seen, unless that was done less than `REFRESH_NS` ago."""
        if self._now() - self._fitted_at >= REFRESH_NS:
            self._current()

    def _current(self) -> _Fit | None:
        with self._lock:
            oldest = self._now() - HORIZON_NS
            if not self._stale and self._oldest >= oldest:
                return self._fit
            samples = {n: list(its) for n, its in self._probes.items()}
            for n, its in self._ticks.items():
                while its and its[0].at < oldest:
                    its.popleft()
                if len(its) >= ENOUGH:
                    samples[n] = list(its)
                elif its:
                    samples[n] = samples.get(n, []) + list(its)
            self._oldest = min((its[0].at for its in self._ticks.values() if its), default=NEVER)
            self._stale = False
        # Outside the lock: the clock thread does not wait for arithmetic.
        self._fitted_at = self._now()
        self._fit = _Fit(self._amounts, samples) if samples else None
        return self._fit


class Refusal(NamedTuple):
    """reason: "slots", "time" or "memory"; detail: for people."""

    reason: str
    detail: str


def slots_within(most: int, slot_bytes: int, budget: int | None, free: int) -> int:
    """Slots for up to `most` sessions of `slot_bytes` of state each: as many as a budget of bytes
    allows, or else all of them, if so many bytes are free.

    Raises ConfigError when not one fits, or when what is asked for is not there.
    """
    slots = most if budget is None else min(most, budget // max(1, slot_bytes))
    if slots < 1:
        raise ConfigError(
            f"byte_budget: the state of one session takes {slot_bytes / 1e6:.1f} MB, got "
            f"{(budget or 0) / 1e6:.1f} MB; raise it, or take a smaller model or window"
        )
    if slots * slot_bytes > free:
        raise ConfigError(
            f"the state of {slots} sessions takes {slots * slot_bytes / 1e6:.1f} MB, this machine "
            f"has {free / 1e6:.1f} MB left; lower max_sessions, or give a byte_budget"
        )
    return slots


@dataclass(frozen=True)
class Admission:
    """Lets a session in when there is time for it and memory.

    A newcomer counts with its window full, beside the others with theirs: it may stay for hours.
    What it brings to read counts too, and the images that it and the others said they would bring,
    as far as one tick takes them. The first session is let in
    unless half of its ticks would be late: with nobody there nothing new could be measured.
    Where it is `welcome` it is let in even then, with a warning.

    period_ns, margin_ns  the predicted p99 and the margin must fit the period
    rows, max_rows  a session brings to an ordinary tick, and at most
    session_bytes   beside its slot: queues when they are full
    free_bytes      what the machine can still give
    """

    predictor: TickPredictor
    period_ns: int
    margin_ns: int
    rows: int
    max_rows: int
    session_bytes: int
    free_bytes: Callable[[], int]
    welcome: bool = False

    def refusal(
        self, sessions: int, waiting_rows: int, images: Sequence[int] = ()
    ) -> Refusal | None:
        """Whether one more may join so many sessions, with so many rows of context to read.
        images: patches a tick, of each session that said it would bring some. By what was last
        worked out: it is asked where ticks wait for the answer.
        """
        load = self.load(sessions + 1, waiting_rows, images)
        ask = self.predictor.p99 if sessions else self.predictor.p50
        ns = ask(load, wait=False)
        if ns is not None and ns + self.margin_ns > self.period_ns:
            ticks = "99 of 100 ticks" if sessions else "half of the ticks"
            detail = (
                f"{ticks} with {load.sessions} sessions are predicted to take {ns / 1e6:.1f} ms or "
                f"less, which with a margin of {self.margin_ns / 1e6:g} ms is more than a tick of "
                f"{self.period_ns / 1e6:g} ms has"
            )
            if sessions or not self.welcome:
                return Refusal("time", detail)
            log.warning("the first session is let in all the same: %s", detail)
        free = self.free_bytes()
        if free < self.session_bytes:
            return Refusal(
                "memory",
                f"the queues of a session may grow to {self.session_bytes / 1e6:.1f} MB, this "
                f"machine has {free / 1e6:.1f} MB left",
            )
        return None

    def load(self, sessions: int, waiting_rows: int = 0, images: Sequence[int] = ()) -> Load:
        """So many sessions at full windows, one of them with context to read, some with images."""
        room = self.max_rows - self.rows
        patches = sum(min(room, patches) for patches in images)
        reads = min(room, waiting_rows)
        # Who reads and sees at once is held to one budget; who of them does is not told apart.
        brought = min(self.max_rows * sessions, self.rows * sessions + reads + patches)
        return Load(sessions, brought, patches=patches)

    def most(self, up_to: int) -> int:
        """The largest number of ordinary sessions that fit the period, none measured: `up_to`."""
        for sessions in range(1, up_to + 1):
            ns = self.predictor.p99(self.load(sessions))
            if ns is not None and ns + self.margin_ns > self.period_ns:
                return sessions - 1
        return up_to


def _rates(table: Array, took: Array, weights: Array) -> Array:
    """x >= 0 that makes table @ x nearest to `took`, in relative terms: there are so few amounts
    that every subset of them is tried, and the best without a negative share is the answer. A ridge
    shares between amounts that rise together.
    """
    scale = np.maximum(table.max(0), 1e-300)
    rows = table / scale / took[:, None]
    gram = rows.T @ (rows * weights[:, None])
    gram += np.eye(len(scale)) * 1e-6 * float(np.trace(gram))
    goal = rows.T @ weights
    best, least = np.zeros(len(scale)), 0.0
    for size in range(1, len(scale) + 1):
        for chosen in map(list, combinations(range(len(scale)), size)):
            x = np.linalg.solve(gram[np.ix_(chosen, chosen)], goal[chosen])
            loss = -float(goal[chosen] @ x)  # at the minimum, less a constant
            if x.min() >= 0 and loss < least:
                best, least = np.zeros(len(scale)), loss
                best[chosen] = x
    found: Array = best / scale
    return found


def _isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing series nearest to `values`: pool adjacent violators."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, float(weight), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, wa, na), (b, wb, nb) = pools[-2:]
            pools[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return [value for value, _, count in pools for _ in range(count)]
