"""What a tick takes from each session: the row budget, warming, and inputs that wait."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from microturn.runtime.errors import CloseCode, CloseReason, RuntimeFull
from microturn.runtime.inbox import Budget, Inbox
from microturn.runtime.plan import RowPlan
from microturn.runtime.queues import AudioQueue, IdQueue, OutputQueue, PatchQueue
from microturn.runtime.scheduler import Gathered, Scheduler, Seat

BUDGET = Budget(max_rows=16, frames=2, input_samples=100, sees=False)
SAMPLING: Any = object()


def admit(scheduler: Scheduler, name: str, context: int = 0) -> Seat:
    inbox = Inbox(
        name, AudioQueue(1_000), IdQueue(1_000), PatchQueue(100), SAMPLING, drop_oldest=True
    )
    assert inbox.context.push(range(context))
    return scheduler.admit(inbox, OutputQueue(10, False), seed=3)


def rows(scheduler: Scheduler, gathered: Gathered) -> tuple[RowPlan, ...]:
    return scheduler.plan(0, 0, gathered.shares)[0].rows


def run(scheduler: Scheduler) -> tuple[RowPlan, ...]:
    gathered = scheduler.gather()
    planned = rows(scheduler, gathered)
    scheduler.settle(gathered, gathered.session_ids)
    return planned


def test_rows_are_feedback_and_audio_first_then_context_up_to_the_budget() -> None:
    scheduler = Scheduler(BUDGET, 4, 100)
    seat = admit(scheduler, "a", context=13)
    (row,) = run(scheduler)
    assert (row.exec, row.reset, row.n_feedback, row.n_audio, row.n_context) == (
        True,
        True,
        1,
        2,
        13,
    )
    assert row.num_rows == 16
    seat.inbox.push_context(range(20))
    counts = [(r.n_feedback, r.n_context, r.n_audio, r.reset) for r in run(scheduler)]
    assert counts == [(1, 13, 2, False)]
    assert seat.inbox.pending_rows() == 7
    assert [r.n_context for r in run(scheduler) + run(scheduler)] == [7, 0]


@pytest.mark.parametrize(
    ("context", "ticks"),
    [
        (13, [(True, 1, 13)]),
        (14, [(False, 1, 14), (True, 0, 0)]),
        (15, [(False, 1, 15), (True, 0, 0)]),
        (29, [(False, 1, 15), (True, 0, 14)]),
        (30, [(False, 1, 15), (False, 0, 15), (True, 0, 0)]),
        (50, [(False, 1, 15), (False, 0, 16), (False, 0, 16), (True, 0, 3)]),
    ],
)
def test_a_session_warms_until_its_context_fits_beside_a_normal_tick(
    context: int, ticks: list[tuple[bool, int, int]]
) -> None:
    scheduler = Scheduler(BUDGET, 1, 100)
    seat = admit(scheduler, "a", context)
    seen = []
    for _ in ticks:
        assert not seat.inbox.live
        (row,) = run(scheduler)
        seen.append((row.exec, row.n_feedback, row.n_context))
        assert row.n_audio == (2 if row.exec else 0)
    assert seen == ticks
    assert seat.inbox.live
    (row,) = run(scheduler)
    assert (row.exec, row.n_feedback, row.n_context) == (True, 1, 0)


def test_patches_come_last_and_only_where_the_model_sees() -> None:
    for sees, want in ((False, [0, 0]), (True, [9, 11])):
        scheduler = Scheduler(BUDGET._replace(sees=sees), 1, 100)
        seat = admit(scheduler, "a", context=4)
        seat.inbox.push_patches(np.zeros((20, 40, 40, 3), np.uint8), still=True)
        assert [run(scheduler)[0].n_patches for _ in range(2)] == want
        assert seat.inbox.pending_rows() == 20 - sum(want)


def test_a_tick_that_was_not_committed_gives_everything_back() -> None:
    scheduler = Scheduler(BUDGET._replace(sees=True), 1, 100)
    seat = admit(scheduler, "a", context=5)
    seat.inbox.push_audio(np.arange(150, dtype=np.float32))
    seat.inbox.push_patches(np.ones((3, 40, 40, 3), np.uint8), still=False)
    first = scheduler.gather()
    scheduler.settle(first, ())
    assert (seat.fresh, seat.starved, seat.position, seat.inbox.live) == (True, True, 0, False)
    again = scheduler.gather()
    assert rows(scheduler, again) == rows(scheduler, first)
    for then, now in zip(first.shares, again.shares, strict=True):
        assert then.held.context_ids == now.held.context_ids
        assert np.array_equal(then.audio, now.audio)
        assert np.array_equal(then.held.patches, now.held.patches)


def test_missing_audio_is_silence_at_one_side_of_the_speech() -> None:
    scheduler = Scheduler(BUDGET, 1, 100)
    seat = admit(scheduler, "a")
    speech = np.arange(1, 251, dtype=np.float32)
    heard, missing = [], []
    for pushed in (speech[:0], speech[:60], speech[60:200], speech[200:], speech[:0]):
        seat.inbox.push_audio(pushed)
        gathered = scheduler.gather()
        heard.append(gathered.shares[0].audio)
        missing.append(gathered.shares[0].missing)
        scheduler.settle(gathered, gathered.session_ids)
    assert missing == [100, 40, 0, 10, 100]
    got = np.concatenate(heard)
    assert np.array_equal(got[140:390], speech)
    assert not got[:140].any() and not got[390:].any()
    assert seat.inbox.counters.silence_samples == 250


def test_while_warming_or_paused_only_the_newest_tick_of_audio_waits() -> None:
    scheduler = Scheduler(BUDGET, 2, 100)
    warming, paused = admit(scheduler, "w", context=40), admit(scheduler, "p")
    paused.inbox.paused = True
    for seat in (warming, paused):
        seat.inbox.push_audio(np.arange(250, dtype=np.float32))
    late = scheduler.gather()
    assert [r.session_id for r in rows(scheduler, late)] == ["w"]
    scheduler.settle(late, ())
    assert len(warming.inbox.audio) == len(paused.inbox.audio) == 250
    run(scheduler)
    for seat in (warming, paused):
        assert seat.inbox.counters.dropped_samples == 150
    paused.inbox.paused = False
    gathered = scheduler.gather()
    audio = {s.seat.session_id: s.audio for s in gathered.shares}
    assert np.array_equal(audio["p"], np.arange(150, 250, dtype=np.float32))
    assert {s.seat.session_id: s.held.dropped for s in gathered.shares}["p"] == 150
    scheduler.settle(gathered, ("p",))
    marks = {s.seat.session_id: s.held.dropped for s in scheduler.gather().shares}
    assert marks == {"w": 150, "p": 0}, "a mark waits for the output that was made"


def test_a_session_opened_during_a_step_keeps_its_audio() -> None:
    scheduler = Scheduler(BUDGET, 2, 100)
    admit(scheduler, "a")
    gathered = scheduler.gather()
    late = admit(scheduler, "b")
    late.inbox.push_audio(np.zeros(250, np.float32))
    scheduler.settle(gathered, gathered.session_ids)
    assert len(late.inbox.audio) == 250


def test_admission_is_by_slot_with_a_retry_hint() -> None:
    scheduler = Scheduler(BUDGET, 2, 100)
    first, second = admit(scheduler, "a"), admit(scheduler, "b")
    assert (first.slot, second.slot) == (0, 1)
    with pytest.raises(RuntimeFull, match="all 2 sessions") as error:
        admit(scheduler, "c")
    assert error.value.retry_after_ms == 1000
    second.inbox.push_audio(np.zeros(250, np.float32))
    second.inbox.draining = True
    with pytest.raises(RuntimeFull) as error:
        admit(scheduler, "c")
    assert error.value.retry_after_ms == 400
    scheduler.end("a", CloseReason(CloseCode.CLOSED, ""))
    scheduler.end("a", CloseReason(CloseCode.INTERNAL, ""))
    assert first.inbox.closed == CloseReason(CloseCode.CLOSED, "")
    assert admit(scheduler, "c").slot == 0


def test_a_draining_session_ends_once_its_input_was_heard() -> None:
    scheduler = Scheduler(BUDGET, 1, 100)
    seat = admit(scheduler, "a", context=3)
    seat.inbox.push_audio(np.zeros(250, np.float32))
    seat.inbox.draining = True
    assert [len(run(scheduler)) for _ in range(4)] == [1, 1, 1, 0]
    assert seat.inbox.closed is not None and seat.inbox.closed.code is CloseCode.CLOSED


def test_rows_are_in_slot_order_and_padded_to_powers_of_two() -> None:
    scheduler = Scheduler(BUDGET, 5, 100)
    for name in "abc":
        admit(scheduler, name)
    scheduler.end("a", CloseReason(CloseCode.CLOSED, ""))
    admit(scheduler, "d", context=2)
    plan, inputs = scheduler.plan(7, 11, scheduler.gather().shares)
    assert [(r.session_id, r.slot) for r in plan.rows] == [("d", 0), ("b", 1), ("c", 2)]
    assert (plan.tick, plan.deadline, plan.b_bucket, plan.row_bucket) == (7, 11, 4, 16)
    assert set(inputs) == {"d", "b", "c"}
    assert inputs["d"].context_ids == (0, 1)


def test_admission_is_exact_under_threads() -> None:
    scheduler = Scheduler(BUDGET, 3, 100)
    taken: list[int] = []

    def work(name: int) -> None:
        for k in range(50):
            try:
                seat = admit(scheduler, f"{name}-{k}")
            except RuntimeFull:
                continue
            taken.append(seat.slot)
            scheduler.end(seat.session_id, CloseReason(CloseCode.CLOSED, ""))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(taken) <= {0, 1, 2} and len(taken) >= 50
    assert [admit(scheduler, name).slot for name in "xyz"] == [0, 1, 2]
