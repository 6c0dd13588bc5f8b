"""Random lives and faults keep every promise, and a planted bug is seen."""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microturn.bench import schema
from microturn.bench.chaos.__main__ import PLANNED, chaos
from microturn.bench.chaos.ledger import Broken
from microturn.bench.chaos.world import LOOPS, OVERFLOWS, Setting, World
from microturn.bench.machine import meta
from microturn.runtime import metrics, queues, scheduler
from microturn.runtime.errors import CloseCode

WORLDS = 20
SESSION_TICKS = 10_000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Every planted fault would be told."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def live(setting: Setting, session_ticks: int) -> World:
    world = World(setting)
    try:
        world.run(session_ticks)
    finally:
        world.close()
    return world


def test_two_hundred_thousand_session_ticks_keep_every_promise() -> None:
    seen: Counter[str] = Counter()
    made = [0]

    @settings(
        max_examples=WORLDS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        seed=st.integers(0, 2**32),
        slots=st.sampled_from((32, 48, 33)),
        given_=st.sampled_from(OVERFLOWS),
        made_=st.sampled_from(OVERFLOWS),
        evict_after=st.integers(3, 8),
        loop=st.sampled_from(LOOPS),
    )
    def lives(seed: int, slots: int, given_: str, made_: str, evict_after: int, loop: str) -> None:
        world = live(Setting(seed, slots, given_, made_, evict_after, loop), SESSION_TICKS)
        seen.update(world.faults)
        made[0] += world.session_ticks

    lives()
    assert made[0] >= WORLDS * SESSION_TICKS
    assert not [name for name in PLANNED if seen[name] < 3], seen


def test_the_row_says_what_happened_and_is_a_document() -> None:
    rows = chaos(3_000, seed=7)
    assert [(row["violations"], row["worlds"]) for row in rows] == [(0, 1)] + [(0, 0)] * 7
    assert rows[0]["session_ticks"] >= 3_000 and rows[0]["faults"]["opened"] > 20
    assert rows[1]["seed"] == 1_000_007 and not rows[1]["faults"]
    schema.document("chaos", meta(threads=1), rows)
    assert len({row["case"] for row in rows}) == 8
    assert not chaos(10**9, seed=0, minutes=0)[0]["worlds"]
    row = rows[0]
    with pytest.raises(schema.SchemaError, match="violations"):
        schema.document("chaos", meta(threads=1), [row | {"violations": None}])


def leaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot of a session that went wrong is not given back."""
    end = scheduler.Scheduler.end

    def leak(self: Any, session_id: str, reason: Any) -> None:
        seat = self._seats.get(session_id)
        end(self, session_id, reason)
        if seat is not None and reason.code is CloseCode.NOT_FINITE:
            self._free.remove(seat.slot)
            heapq.heapify(self._free)

    monkeypatch.setattr(scheduler.Scheduler, "end", leak)


def unmarked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are dropped are not counted."""
    keep = queues.AudioQueue.keep

    def forget(self: Any, count: int) -> int:
        return max(0, keep(self, count) - 1)

    monkeypatch.setattr(queues.AudioQueue, "keep", forget)


def miscounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that ends within 40 ms of its deadline is called in time."""
    tick = metrics.Metrics.tick

    def lenient(self: Any, timing: Any, *rest: int) -> None:
        late = -40_000_000 < timing.slack < 0
        tick(self, metrics.TickTiming(**{**vars(timing), "slack": 0}) if late else timing, *rest)

    monkeypatch.setattr(metrics.Metrics, "tick", lenient)


def inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot's next tenant is not reset."""
    plan = scheduler.row_plan

    def keep(session_id: str, slot: int, live: bool, reset: bool, *rows: int) -> Any:
        return plan(session_id, slot, live, False, *rows)

    monkeypatch.setattr(scheduler, "row_plan", keep)


def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Context of one push is told back to front."""
    push = queues.IdQueue.push
    monkeypatch.setattr(queues.IdQueue, "push", lambda self, ids: push(self, list(ids)[::-1]))


def bumped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest session goes so that others are in time."""

    def oldest(self: Any, since: int, detail: str) -> Any:
        seat = min((s for s in self.seats if s.joined is not None), key=lambda seat: seat.joined)
        self.end(seat.session_id, scheduler.CloseReason(CloseCode.OVERLOADED, detail))
        return seat

    monkeypatch.setattr(scheduler.Scheduler, "evict_worst", oldest)


def spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that raises ends all that were in its step."""

    def strike(self: Any, culprits: Any, most: int) -> None:
        for seat in self.seats if culprits else ():
            self.end(seat.session_id, scheduler.CloseReason(CloseCode.STEP_FAILED, ""))

    monkeypatch.setattr(scheduler.Scheduler, "strike", strike)


def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that drains ends before its last tick, which is under way, is handed out."""
    gather = scheduler.Scheduler.gather
    monkeypatch.setattr(scheduler.Scheduler, "gather", lambda self, under_way=(): gather(self))


def blinking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch of an image that a tick cuts is not seen."""
    hold = queues.PatchQueue.hold

    def skip(self: Any, count: int) -> Any:
        if self._frames and 0 < self._frames[0].done < len(self._frames[0].patches) - 1:
            self._frames[0].done += 1
        return hold(self, count)

    monkeypatch.setattr(queues.PatchQueue, "hold", skip)


def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that gives way to the next is not counted."""
    push = queues.PatchQueue.push

    def forget(self: Any, patches: Any, still: bool) -> bool:
        fits = push(self, patches, still)
        self.replaced = 0
        return fits

    monkeypatch.setattr(queues.PatchQueue, "push", forget)


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (leaking, "a slot is free or taken|no slot leaks|only the full are refused"),
        (unmarked, "a gap is marked|no accepted audio is lost|nothing is heard twice"),
        (miscounted, "misses are counted exactly"),
        (inherited, "a slot's state|what was heard is|context is told"),
        (swapped, "context is told in order"),
        (bumped, "nobody is evicted while a newcomer stays"),
        (spread, "a session ends for its own fault"),
        (hasty, "no accepted audio is lost"),
        (blinking, "images are seen whole and in order"),
        (forgetful, "an image that is not seen was replaced, and counted"),
    ],
)
def test_a_planted_bug_is_seen(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], says: str
) -> None:
    plant(monkeypatch)
    with pytest.raises(Broken, match=says):
        for seed in range(4):
            for loop in LOOPS:
                live(Setting(seed, loop=loop), 3_000)
