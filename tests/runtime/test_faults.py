"""The field's faults, (a) to (k): each costs at most the session that brings it.

Everywhere `beside` is a session that does nothing wrong; its outputs must be, to the bit, what they
are with nobody else there.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.bench.chaos.echo import SHAPE, EchoEngine, EchoFamily
from microturn.runtime import AudioError, Runtime, RuntimeFull, SessionClosed, VirtualClock
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.errors import CloseCode
from microturn.runtime.lateness import COUNT_ONLY

MakeRuntime = Callable[..., Runtime]
TICK, RATE, MS = 1_600, 16_000, 1_000_000
TICKS = 24


class Faulty(CpuEngine):
    """Steps that take `takes` ms each, raise for sessions in `raises` once all was written but
    nothing committed, and call `during`.
    """

    def __init__(self, family: Any, num_slots: int, clock: VirtualClock) -> None:
        super().__init__(family, num_slots)
        self.family = family
        self.clock = clock
        self.takes: list[int] = []
        self.raises: dict[str, Exception] = {}
        self.during: list[Callable[[], Any]] = []

    def step(self, plan: Any, inputs: Any) -> Any:
        while self.during:
            self.during.pop()()
        self.clock.advance(self.takes.pop(0) * MS if self.takes else 0)
        planted = [self.raises[r.session_id] for r in plan.rows if r.session_id in self.raises]
        self.family.raise_in = [True] * bool(planted)
        try:
            return super().step(plan, inputs)
        except RuntimeError:
            raise planted[0] from None


class Stage:
    """A runtime, the session that does nothing wrong, and one to do something with."""

    def __init__(
        self, make: MakeRuntime, family: Any, tools: SimpleNamespace, **config: Any
    ) -> None:
        self.tools = tools
        self.clock = VirtualClock(5)
        self.engine = Faulty(family, 3, self.clock)
        self.runtime = make(
            model=family, engine=self.engine, clock=self.clock, **{"lateness": COUNT_ONLY, **config}
        )
        self.beside = self.runtime.open("be brief", seed=5)
        self.outputs: list[Any] = []
        self.ticks = 0

    def run(self, ticks: int, each: Callable[[int], Any] = lambda tick: None) -> None:
        """each: what happens before every tick."""
        for _ in range(ticks):
            self.beside.push_audio(self.tools.noise(TICK, self.ticks), RATE)
            each(self.ticks)
            self.runtime.tick()
            self.outputs += self.tools.drain(self.beside)
            self.ticks += 1

    @property
    def bits(self) -> list[Any]:
        return self.tools.bits(self.outputs)  # type: ignore[no-any-return]


@pytest.fixture
def stage(
    make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace
) -> Callable[..., Stage]:
    return lambda **config: Stage(make_runtime, make_family(), tools, **config)


@pytest.fixture
def alone(stage: Callable[..., Stage]) -> list[Any]:
    """What the session beside says when nobody else is there."""
    one = stage()
    one.run(TICKS)
    assert len(one.bits) == TICKS
    return one.bits


@pytest.fixture
def echo() -> Iterator[Callable[..., tuple[Runtime, EchoEngine]]]:
    """Runtimes around the echo, whose steps take as long as `takes(rows)` says."""
    made: list[Runtime] = []

    def make(
        slots: int, takes: Callable[[int], int] = lambda rows: 0, **config: Any
    ) -> tuple[Runtime, EchoEngine]:
        clock = VirtualClock(9)
        engine = EchoEngine(slots, clock, takes)
        family: Any = EchoFamily()
        made.append(Runtime(model=family, engine=engine, clock=clock, max_sessions=slots, **config))
        return made[-1], engine

    yield make
    for runtime in made:
        runtime.close()


def code(session: Any) -> CloseCode | None:
    return None if session.closed_reason is None else session.closed_reason.code


def calls_of(tick: Callable[[], Any]) -> int:
    """Python functions that a tick calls: its cost without the machine's mood."""
    count = itertools.count()
    sys.setprofile(lambda frame, event, arg: event == "call" and next(count) and None)
    try:
        tick()
    finally:
        sys.setprofile(None)
    return next(count)


def test_a_minutes_cost_the_same_at_their_end_and_leaves_nothing_behind(echo: Any) -> None:
    runtime, engine = echo(2)
    session, silent = runtime.open(seed=1), runtime.open(seed=2)
    audio = np.full(SHAPE.input_samples, 0.25, np.float32)
    costs, blocks, last = [], [], None
    for tick in range(2_000):
        session.push_audio(audio, SHAPE.input_rate)
        if tick in (1_200, 1_999):
            gc.collect()
            blocks.append(sys.getallocatedblocks())
            costs.append(calls_of(runtime.tick))
        else:
            runtime.tick()
        engine.calls.clear()
        last = session.poll()
        silent.poll()
    assert costs[0] == costs[1] > 20
    assert abs(blocks[1] - blocks[0]) < 500, "memory is flat"
    assert last is not None and (last.tick, last.start_ms) == (1_999, 199_900), "no drift"
    assert last.codes[0, 0] == 2_000 * SHAPE.input_samples, "every sample was heard"
    assert silent.stats.inserted_silence_ms == 200_000


def test_b_slots_change_hands_every_tick_and_nothing_of_a_tenant_stays(
    stage: Callable[..., Stage], alone: list[Any], make_runtime: MakeRuntime, tools: Any
) -> None:
    one = stage()
    tenants: list[tuple[int, int, list[Any]]] = []

    def churn(tick: int) -> None:
        for guest in [s for s in one.runtime.sessions if s is not one.beside]:
            tenants[-1][2].extend(tools.drain(guest))
            guest.close()
        guest = one.runtime.open("hello there " * (tick % 3), seed=100 + tick)
        guest.push_audio(tools.noise(TICK, 1_000 + tick), RATE)
        tenants.append((tick, tick % 3, []))

    one.run(TICKS, churn)
    assert one.bits == alone
    assert one.runtime.metrics.sessions_opened == 1 + TICKS
    for tick, words, outputs in tenants[:-1]:
        fresh = make_runtime(max_sessions=1)
        session = fresh.open("hello there " * words, seed=100 + tick)
        session.push_audio(tools.noise(TICK, 1_000 + tick), RATE)
        fresh.tick()
        assert len(outputs) == 1 and tools.bits(outputs) == tools.bits(tools.drain(session))


def test_c_a_client_stalls_for_ten_seconds_and_then_floods(stage: Callable[..., Stage]) -> None:
    ticks = 110
    want, one = stage(), stage(input_queue_ms=500)
    want.run(ticks)
    bursty = one.runtime.open(seed=1)
    outputs: list[Any] = []

    def stall_then_flood(tick: int) -> None:
        outputs.extend(one.tools.drain(bursty))
        for k in range(20) if tick == 102 else ():
            bursty.push_audio(one.tools.noise(RATE // 2, k), RATE)

    one.run(ticks, stall_then_flood)
    outputs.extend(one.tools.drain(bursty))
    assert one.bits == want.bits
    assert [o.inserted_silence_ms for o in outputs] == [100.0] * 102 + [0.0] * 5 + [100.0] * 3
    assert [o.dropped_ms for o in outputs if o.dropped_ms] == [9_500.0], "the gap is marked, once"
    assert outputs[102].dropped_ms == 9_500.0


def test_c_a_flood_ends_the_client_where_the_policy_says_so(
    stage: Callable[..., Stage], alone: list[Any]
) -> None:
    one = stage(input_overflow="close", input_queue_ms=500)
    bursty = one.runtime.open(seed=1)

    def flood(tick: int) -> None:
        for k in range(20) if tick == 10 else ():
            with contextlib.suppress(SessionClosed):
                bursty.push_audio(one.tools.noise(RATE // 2, k), RATE)

    one.run(TICKS, flood)
    assert one.bits == alone and code(bursty) is CloseCode.INPUT_OVERFLOW
    assert len(one.tools.drain(bursty)) == 10


@pytest.mark.parametrize("overflow", ["close", "drop_oldest"])
def test_d_a_consumer_never_reads(
    stage: Callable[..., Stage], alone: list[Any], overflow: str
) -> None:
    one = stage(output_overflow=overflow, output_queue_ticks=10)
    stuck = one.runtime.open(seed=1)
    one.run(TICKS)
    assert one.bits == alone
    left = one.tools.drain(stuck)
    assert len(left) == 10
    if overflow == "close":
        assert code(stuck) is CloseCode.SLOW_READER
        assert [o.tick for o in left] == list(range(10))
    else:
        assert code(stuck) is None
        assert [o.tick for o in left] == list(range(TICKS - 10, TICKS))
        assert (left[0].dropped_outputs, left[1].dropped_outputs) == (TICKS - 10, 0)


def test_e_input_that_is_wrong_is_refused_and_costs_nothing(
    stage: Callable[..., Stage], alone: list[Any]
) -> None:
    one = stage(input_queue_ms=300)
    wrong = [
        (np.full(TICK, np.nan, np.float32), RATE, "finite"),
        (np.full(TICK, np.inf, np.float32), RATE, "finite"),
        (np.zeros(20 * TICK, np.float32), RATE, "the queue holds 300 ms"),
        (np.zeros(TICK, np.float32), 0, "rate must be in"),
        (np.zeros(TICK, np.float32), float("nan"), "rate must be a number"),
        (np.zeros(TICK, np.int64), RATE, "int16 or floating point"),
        (np.full(TICK, 9_000.0, np.float32), RATE, "peak"),
        (np.zeros((2, TICK), np.float32), RATE, "transpose|channels"),
    ]

    def push(tick: int) -> None:
        pcm, rate, says = wrong[tick % len(wrong)]
        with pytest.raises(AudioError, match=says):
            one.beside.push_audio(pcm, rate)

    one.run(TICKS, push)
    assert one.bits == alone, "the session itself lives on as if nothing had been pushed"


def test_f_steps_stall_rows_raise_and_memory_runs_out(
    stage: Callable[..., Stage], alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stage()
    raising, hungry = one.runtime.open(seed=1), one.runtime.open(seed=2)

    def trouble(tick: int) -> None:
        if tick == 3:
            one.engine.takes = [50, 500]
        if tick == 8:
            one.engine.raises[raising.id] = ZeroDivisionError("planted")
        if tick == 14:
            one.engine.raises[hungry.id] = MemoryError("planted")

    one.run(TICKS, trouble)
    assert one.bits == alone
    assert [o.tick for o in one.outputs[:7]] == [0, 1, 2, 3, 4, 9, 10]
    assert [o.late for o in one.outputs] == [False] * 4 + [True] + [False] * (TICKS - 5)
    assert code(raising) is CloseCode.STEP_FAILED
    assert "ZeroDivisionError: planted" in raising.closed_reason.detail
    assert code(hungry) is CloseCode.OUT_OF_MEMORY
    summary = one.runtime.summary()
    assert (summary["misses"], summary["skipped_ticks"], summary["ticks"]) == (1, 4, TICKS)
    slots = one.runtime.free_slots
    monkeypatch.setattr(one.runtime._scheduler, "admit", _no_memory)
    with pytest.raises(RuntimeFull, match="no memory for one more session") as full:
        one.runtime.open("hello")
    assert full.value.reason == "memory"
    monkeypatch.undo()
    assert one.runtime.free_slots == slots and one.runtime.sessions == (one.beside,)
    assert one.runtime.open("hello").state == "warming"


def _no_memory(*args: Any) -> None:
    raise MemoryError("planted")


def test_f_what_a_session_brings_cannot_be_converted_or_said(
    stage: Callable[..., Stage], alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stage()
    heard, said = one.runtime.open(seed=1), one.runtime.open(seed=2)

    def trouble(tick: int) -> None:
        if tick == 5:
            monkeypatch.setattr(heard._inbox.audio, "hold", _no_memory)
        if tick == 9:
            monkeypatch.setattr(said._outbox, "put", _no_memory)

    one.run(TICKS, trouble)
    assert one.bits == alone
    assert code(heard) is CloseCode.INPUT_FAILED and code(said) is CloseCode.INTERNAL
    assert len(one.tools.drain(heard)) == 5 and len(one.tools.drain(said)) == 9
    assert one.runtime.free_slots == 2


def test_g_clients_leave_mid_step_mid_prompt_twice_and_come_back_stale(
    stage: Callable[..., Stage], alone: list[Any]
) -> None:
    one = stage()
    left: list[Any] = []

    def leave(session: Any) -> None:
        thread = threading.Thread(target=session.close)
        thread.start()
        thread.join()

    def come_and_go(tick: int) -> None:
        guest = one.runtime.open("a long prompt " * (20 if tick % 2 else 0), seed=tick)
        left.append(guest)
        if tick % 3 == 0:
            one.engine.during.append(lambda: leave(guest))
        elif tick % 3 == 1:
            one.runtime.tick = _then(one.runtime.tick, lambda: leave(guest))  # type: ignore[method-assign]
        else:
            guest.close()

    one.run(TICKS, come_and_go)
    assert one.bits == alone
    assert {code(guest) for guest in left} == {CloseCode.CLOSED}
    for guest in left:
        guest.close()
        guest.close(drain=True)
        for call in (lambda: guest.push_audio(np.zeros(9, np.float32), RATE), guest.pause):  # noqa: B023
            with pytest.raises(SessionClosed, match="closed by its owner"):
                call()
    assert one.runtime.free_slots == 2 and one.runtime.sessions == (one.beside,)
    assert one.runtime.metrics.sessions_closed == Counter(closed=TICKS)


def _then(call: Callable[[], Any], after: Callable[[], Any]) -> Callable[[], Any]:
    def both() -> Any:
        try:
            return call()
        finally:
            after()

    return both


def test_h_windows_wrap_and_wrap_again(stage: Callable[..., Stage]) -> None:
    """Rings and pages of a few dozen rows, 4 rows a tick: alone, and beside one that is older."""
    ticks = 80
    want, one = stage(), stage(output_overflow="drop_oldest")
    want.run(ticks)
    older = one.runtime.open(seed=7)
    one.beside.pause()
    for _ in range(8):
        one.runtime.tick()
    one.beside.resume()
    one.run(ticks)
    assert one.bits == want.bits and len(want.bits) == ticks
    cursor = one.engine.arenas.cursor("rows")
    capacity = one.engine.family.arena_specs()[0].capacity
    assert int(cursor[1]) > int(cursor[0]) > 5 * capacity
    assert older.stats.ticks == ticks + 8


def test_i_the_clock_jumps_and_the_process_pauses(
    stage: Callable[..., Stage], alone: list[Any]
) -> None:
    one = stage()
    jumps = {4: 30, 8: 130, 12: 10_000}

    def jump(tick: int) -> None:
        one.clock.advance(jumps.get(tick, 0) * MS)

    one.run(TICKS, jump)
    assert one.bits == alone
    places = [o.tick for o in one.outputs]
    assert places == [*range(13), *range(111, 111 + TICKS - 13)], "back on the grid at once"
    slack = {tick: o.slack_ms for tick, o in enumerate(one.outputs)}
    assert (slack[4], slack[8], slack[9]) == (100, 70, 100), "a late start is not a miss"
    assert slack[12] == 200 - 10_000
    summary = one.runtime.summary()
    assert (summary["misses"], summary["skipped_ticks"]) == (1, 98)


def test_j_twice_as_many_come_as_there_is_time_for(echo: Any) -> None:
    runtime, _ = echo(24, lambda rows: (5 + 9 * rows) * MS, admission="predict")
    inside: list[Any] = []
    refused: list[RuntimeFull] = []
    ends: list[int] = []
    for tick in range(80):
        if tick % 3 == 0 and tick < 60:
            try:
                inside.append(runtime.open(seed=tick))
                ends.append(tick)
            except RuntimeFull as full:
                refused.append(full)
        runtime.tick()
        for session in inside:
            while session.poll() is not None:
                pass
    summary = runtime.summary()
    assert 6 <= len(inside) <= 10 and len(inside) + len(refused) == 20
    assert (summary["misses"], summary["skipped_ticks"]) == (0, 0), "the admitted are in time"
    assert [s.stats.ticks for s in inside] == [80 - tick for tick in ends]
    assert {full.reason for full in refused} == {"time"}
    assert all(full.retry_after_ms > 0 and "predicted" in str(full) for full in refused)
    assert not [s for s in inside if s.closed_reason], "nobody goes for a newcomer"
    inside[0].close()
    assert runtime.open().state == "warming", "and who leaves makes room"


def test_k_a_process_dies_and_another_goes_on_from_what_was_saved(
    stage: Callable[..., Stage], alone: list[Any], tmp_path: Any
) -> None:
    """Here nobody closes the first runtime; test_snapshot.py kills a process in the middle of a
    write.
    """
    saved = 11
    first = stage()
    first.run(saved)
    first.runtime.snapshot(first.beside.id, tmp_path / "last")
    first.run(4)
    second = stage()
    second.beside.close()
    second.beside = second.runtime.restore(tmp_path / "last")
    assert second.beside.id == first.beside.id
    second.ticks = saved
    second.run(TICKS - saved)
    assert second.bits == alone[saved:] and first.bits == alone[: saved + 4]
