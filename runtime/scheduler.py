"""Who sits in which slot, and what each tick takes from whom. Pure bookkeeping; no torch."""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from microturn.runtime.admission import Refusal
from microturn.runtime.engine import RowInput
from microturn.runtime.errors import CloseCode, CloseReason, RuntimeFull
from microturn.runtime.inbox import Budget, Held, Inbox
from microturn.runtime.plan import RowPlan, TickPlan, plan_of
from microturn.runtime.queues import OutputQueue, Samples

log = logging.getLogger("microturn.runtime.scheduler")

RETRY_MS = 1000
"""The retry hint when nobody has said that they will leave."""

RECENT = 1 / 16
"""Weight of the newest tick in what a session lately brought."""


@dataclass
class Seat:
    """A session in its slot. Only ticks change it.

    fresh    no tick was committed for it yet: the first one resets the slot
    starved  the last tick ended in silence for want of audio
    position ticks heard and said: its media time
    strikes  ticks in a row in which a step of its row alone raised
    joined   the first tick that planned it; None before
    rows     how many it lately brought to a tick, context and patches included
    images   patches that it said it would bring to a tick
    """

    session_id: str
    slot: int
    seed: int
    inbox: Inbox
    outbox: OutputQueue
    fresh: bool = True
    starved: bool = True
    position: int = 0
    strikes: int = 0
    joined: int | None = None
    rows: float = 0.0
    images: int = 0


row_plan = lru_cache(4096)(RowPlan)
"""Most of a session's ticks are alike."""


class Share(NamedTuple):
    """A seat's part of a tick. missing: samples of it that are silence."""

    seat: Seat
    held: Held
    audio: Samples
    missing: int


class Gathered(NamedTuple):
    """Who takes part in a tick, and who sits it out."""

    shares: tuple[Share, ...]
    idle: tuple[Seat, ...]

    @property
    def session_ids(self) -> Collection[str]:
        """Of those who take part."""
        return {share.seat.session_id for share in self.shares}


class Scheduler:
    """Admission by slot, the row budget, and inputs that are consumed only by committed ticks."""

    def __init__(
        self,
        budget: Budget,
        num_slots: int,
        tick_ms: int,
        on_end: Callable[[Seat, CloseReason], None] = lambda seat, reason: None,
        refusal: Callable[[int, int, Sequence[int]], Refusal | None] = lambda *asked: None,
    ) -> None:
        """refusal: asked before one more joins so many sessions with so many rows to read, all
        of them together to be shown so many patches each.
        """
        self._budget = budget
        self._num_slots = num_slots
        self._tick_ms = tick_ms
        self._on_end = on_end
        self._refusal = refusal
        self._lock = threading.Lock()
        self._free = list(range(num_slots))
        self._seats: dict[str, Seat] = {}
        self._by_slot: tuple[Seat, ...] | None = None
        self._suspects: set[str] = set()

    @property
    def seats(self) -> tuple[Seat, ...]:
        """By slot."""
        with self._lock:
            if self._by_slot is None:
                self._by_slot = tuple(sorted(self._seats.values(), key=lambda seat: seat.slot))
            return self._by_slot

    @property
    def free_slots(self) -> int:
        """How many more sessions there is a slot for."""
        with self._lock:
            return len(self._free)

    def admit(self, inbox: Inbox, outbox: OutputQueue, seed: int, images: int = 0) -> Seat:
        """The lowest free slot. Nobody is ended for a newcomer: raises RuntimeFull with a retry
        hint. images: see Seat.
        """
        with self._lock:
            refused = self._refused(len(inbox.context), images)
            if refused is not None:
                raise RuntimeFull(refused.reason, refused.detail, self._retry_ms())
            seat = Seat(inbox.session_id, self._free[0], seed, inbox, outbox, images=images)
            self._seats[seat.session_id] = seat
            self._by_slot = None
            heapq.heappop(self._free)
        return seat

    def end(self, session_id: str, reason: CloseReason) -> None:
        """Closes the session's queues and frees its slot. A tick under way may still write the
        slot: the next tenant's first tick resets it.
        """
        with self._lock:
            seat = self._seats.pop(session_id, None)
            if seat is None:
                return
            self._by_slot = None
            self._suspects.discard(session_id)
            seat.inbox.close(reason)
            heapq.heappush(self._free, seat.slot)
        seat.outbox.finish()
        level = logging.INFO if reason.code in _ORDINARY else logging.WARNING
        log.log(level, "session %s ended: %s", session_id, reason)
        self._on_end(seat, reason)

    def gather(self, under_way: Collection[str] = ()) -> Gathered:
        """What each session brings to the next tick. It must be settled.

        A session whose input cannot be taken is ended by it, alone. under_way: sessions whose last
        outputs are still to come; one that drains is not ended before.
        """
        shares, idle = [], []
        for seat in self.seats:
            if seat.inbox.draining and seat.inbox.drained(self._budget.sees):
                if seat.session_id in under_way:
                    continue
                reason = CloseReason(CloseCode.CLOSED, "closed by its owner, its input heard")
                self.end(seat.session_id, reason)
                continue
            share = self._share(seat)
            if share is not None:
                shares.append(share)
            elif seat.inbox.closed is None:
                idle.append(seat)
        return Gathered(tuple(shares), tuple(idle))

    def gather_owed(self) -> Gathered:
        """The same of the sessions alone that are owed a tick, have all of its audio, and did not
        raise in their last.
        """
        samples = self._budget.input_samples
        shares = [
            share
            for seat in self.seats
            if seat.inbox.owed and not seat.strikes and len(seat.inbox.audio) >= samples
            if (share := self._share(seat)) is not None
        ]
        return Gathered(tuple(shares), ())

    def plan(
        self, tick: int, deadline: int, shares: Sequence[Share]
    ) -> tuple[TickPlan, dict[str, RowInput]]:
        """The shares as rows, in slot order."""
        frames = self._budget.frames
        rows, inputs = [], {}
        for seat, held, audio, _ in shares:
            if seat.joined is None:
                seat.joined = tick
            rows.append(
                row_plan(
                    seat.session_id,
                    seat.slot,
                    held.live,
                    seat.fresh,
                    len(held.context_ids),
                    len(held.patches),
                    frames if held.live else 0,
                    held.n_feedback,
                )
            )
            inputs[seat.session_id] = RowInput(
                audio=audio,
                context_ids=held.context_ids,
                seed=seat.seed,
                sampling=held.sampling,
                patches=held.patches,
            )
        return plan_of(tick, deadline, tuple(rows)), inputs

    def settle(self, gathered: Gathered, committed: Collection[str]) -> None:
        """After the step. committed: the sessions whose row was; each of the others is where it
        was, its input waiting, and is owed the tick.

        Sessions that heard nothing keep only the newest tick of their audio.
        """
        for seat, held, audio, missing in gathered.shares:
            done = seat.session_id in committed
            seat.inbox.settle(held, done)
            if not done:
                seat.inbox.owed += held.live
                seat.inbox.counters.missed_ticks += held.live
                continue
            seat.fresh = False
            if seat.strikes:
                seat.strikes = 0
                self._suspects.discard(seat.session_id)
            brought = len(held.context_ids) + len(held.patches) + held.n_feedback
            seat.rows += RECENT * (brought - seat.rows)
            if held.live:
                seat.starved = missing == len(audio) or (missing > 0 and not seat.starved)
                seat.position += 1
                seat.inbox.counters.silence_samples += missing
                if missing:
                    seat.inbox.owed = 0
            else:
                seat.inbox.keep_audio(self._budget.input_samples)
                seat.inbox.owed = 0
        for seat in gathered.idle if committed or not gathered.shares else ():
            seat.inbox.keep_audio(self._budget.input_samples)

    def put_back(self, gathered: Gathered) -> None:
        """Nothing was stepped after all, and nobody is owed more for it."""
        for seat, held, _, _ in gathered.shares:
            seat.inbox.settle(held, False)

    def strike(self, culprits: Mapping[str, Exception], most: int) -> None:
        """Steps of these rows alone raised: `most` times in a row end the session."""
        for session_id, error in culprits.items():
            seat = self._seats.get(session_id)
            if seat is None:
                continue
            seat.strikes += 1
            self._suspects.add(session_id)
            if seat.strikes >= most:
                memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
                code = CloseCode.OUT_OF_MEMORY if memory else CloseCode.STEP_FAILED
                detail = f"{most} steps of it in a row raised, the last {type(error).__name__}"
                self.end(session_id, CloseReason(code, f"{detail}: {error}"))

    @property
    def suspects(self) -> Collection[str]:
        """Sessions whose row raised in their last tick."""
        return self._suspects

    def owe(self, ticks: int) -> None:
        """So many grid points passed without a tick."""
        for seat in self.seats:
            if seat.inbox.listening and seat.joined is not None:
                seat.inbox.owed += ticks
                seat.inbox.counters.missed_ticks += ticks

    def catch_up(self, shares: Sequence[Share]) -> None:
        """These are about to be given a tick that they are owed."""
        for share in shares:
            share.seat.inbox.owed -= 1
            share.seat.inbox.counters.missed_ticks -= 1

    def degrade(self, samples: int) -> int:
        """Every session keeps only its newest `samples` of audio; says how many had more."""
        tick, degraded = self._budget.input_samples, 0
        for seat in self.seats:
            if dropped := seat.inbox.keep_audio(max(samples, tick)):
                degraded += 1
                seat.inbox.owed = max(0, seat.inbox.owed - -(-dropped // tick))
        return degraded

    def evict_worst(self, since: int, detail: str) -> Seat | None:
        """Ends one session with OVERLOADED so that the others are in time: of those that came
        since the tick that lateness began with, if there are any, so that nobody who was here
        before is ended for a newcomer; among them the one that lately brought most rows, then the
        last to come. None when fewer than two take part.
        """
        present = [s for s in self.seats if s.joined is not None and not s.inbox.paused]
        if len(present) < 2:
            return None
        newcomers = [seat for seat in present if (seat.joined or 0) >= since]
        worst = max(
            newcomers or present,
            key=lambda seat: (round(seat.rows), seat.joined, seat.slot),
        )
        self.end(worst.session_id, CloseReason(CloseCode.OVERLOADED, detail))
        return worst

    def _share(self, seat: Seat) -> Share | None:
        """None for a session that sits the tick out, or was just ended by its input."""
        try:
            n_feedback = int(seat.fresh or seat.inbox.live)
            held = seat.inbox.hold(self._budget, n_feedback=n_feedback)
            return None if held is None else _fill(seat, held, self._budget.input_samples)
        except Exception as error:
            log.exception("session %s: its input could not be taken", seat.session_id)
            detail = f"its input could not be taken: {type(error).__name__}: {error}"
            self.end(seat.session_id, CloseReason(CloseCode.INPUT_FAILED, detail))
            return None

    def images(self) -> list[int]:
        """Patches a tick of each session that said it would bring some."""
        with self._lock:
            return self._images()

    def _images(self) -> list[int]:
        return [seat.images for seat in self._seats.values() if seat.images]

    def _refused(self, waiting_rows: int, images: int) -> Refusal | None:
        if not self._free:
            detail = f"all {self._num_slots} sessions are taken; close one or raise max_sessions"
            return Refusal("slots", detail)
        return self._refusal(len(self._seats), waiting_rows, [*self._images(), images])

    def _retry_ms(self) -> int:
        samples = self._budget.input_samples
        leaving = [
            (len(seat.inbox.audio) // samples + 2) * self._tick_ms
            for seat in self._seats.values()
            if seat.inbox.draining
        ]
        return min(leaving, default=RETRY_MS)


_ORDINARY = (CloseCode.CLOSED, CloseCode.RUNTIME_CLOSED)


def _fill(seat: Seat, held: Held, input_samples: int) -> Share:
    """Missing audio becomes silence: before the samples where the last tick ended in silence, so
    that speech is cut in one place only; after them otherwise.
    """
    if not held.live:
        return Share(seat, held, held.audio, 0)
    missing = input_samples - len(held.audio)
    before = missing if seat.starved else 0
    audio = held.audio if not missing else np.pad(held.audio, (before, missing - before))
    return Share(seat, held, audio, missing)
