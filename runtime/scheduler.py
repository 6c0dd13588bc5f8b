"""Who sits in which slot, and what each tick takes from whom. Pure bookkeeping; no torch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from microturn.runtime.engine import RowInput
from microturn.runtime.errors import CloseCode, CloseReason, RuntimeFull
from microturn.runtime.inbox import Budget, Held, Inbox
from microturn.runtime.plan import RowPlan, TickPlan, bucket
from microturn.runtime.queues import OutputQueue, Samples

log = logging.getLogger("microturn.runtime.scheduler")

RETRY_MS = 1000
"""The retry hint when nobody has said that they will leave."""


@dataclass
class Seat:
    """A session in its slot. Only ticks change it.

    fresh    no tick was committed for it yet: the first one resets the slot
    starved  the last tick ended in silence for want of audio
    position ticks heard and said: its media time
    """

    session_id: str
    slot: int
    seed: int
    inbox: Inbox
    outbox: OutputQueue
    fresh: bool = True
    starved: bool = True
    position: int = 0


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


class Scheduler:
    """Admission by slot, the row budget, and inputs that are consumed only by committed ticks."""

    def __init__(
        self,
        budget: Budget,
        num_slots: int,
        tick_ms: int,
        on_end: Callable[[Seat, CloseReason], None] = lambda seat, reason: None,
    ) -> None:
        self._budget = budget
        self._num_slots = num_slots
        self._tick_ms = tick_ms
        self._on_end = on_end
        self._lock = threading.Lock()
        self._free = list(range(num_slots))
        self._seats: dict[str, Seat] = {}

    @property
    def seats(self) -> tuple[Seat, ...]:
        """By slot."""
        with self._lock:
            return tuple(sorted(self._seats.values(), key=lambda seat: seat.slot))

    def admit(self, inbox: Inbox, outbox: OutputQueue, seed: int) -> Seat:
        """The lowest free slot. Raises RuntimeFull with a retry hint."""
        with self._lock:
            if not self._free:
                raise RuntimeFull(self._num_slots, self._retry_ms())
            slot = min(self._free)
            self._free.remove(slot)
            seat = Seat(inbox.session_id, slot, seed, inbox, outbox)
            self._seats[seat.session_id] = seat
        return seat

    def end(self, session_id: str, reason: CloseReason) -> None:
        """Closes the session's queues and frees its slot. A tick under way may still write the
        slot: the next tenant's first tick resets it.
        """
        with self._lock:
            seat = self._seats.pop(session_id, None)
            if seat is None:
                return
            seat.inbox.close(reason)
            self._free.append(seat.slot)
        seat.outbox.finish()
        level = logging.INFO if reason.code in _ORDINARY else logging.WARNING
        log.log(level, "session %s ended: %s", session_id, reason)
        self._on_end(seat, reason)

    def gather(self) -> Gathered:
        """What each session brings to the next tick. It must be settled."""
        budget = self._budget
        shares, idle = [], []
        for seat in self.seats:
            if seat.inbox.drained(budget.sees):
                reason = CloseReason(CloseCode.CLOSED, "closed by its owner, its input heard")
                self.end(seat.session_id, reason)
                continue
            n_feedback = int(seat.fresh or seat.inbox.live)
            held = seat.inbox.hold(budget, n_feedback=n_feedback)
            if held is None:
                idle.append(seat)
            else:
                shares.append(_fill(seat, held, budget.input_samples))
        return Gathered(tuple(shares), tuple(idle))

    def plan(
        self, tick: int, deadline: int, shares: Sequence[Share]
    ) -> tuple[TickPlan, dict[str, RowInput]]:
        """The shares as rows, in slot order."""
        frames = self._budget.frames
        rows = tuple(
            RowPlan(
                session_id=share.seat.session_id,
                slot=share.seat.slot,
                exec=share.held.live,
                reset=share.seat.fresh,
                n_context=len(share.held.context_ids),
                n_patches=len(share.held.patches),
                n_audio=frames if share.held.live else 0,
                n_feedback=share.held.n_feedback,
            )
            for share in shares
        )
        inputs = {
            share.seat.session_id: RowInput(
                audio=share.audio,
                context_ids=share.held.context_ids,
                seed=share.seat.seed,
                sampling=share.held.sampling,
                patches=share.held.patches,
            )
            for share in shares
        }
        total = sum(row.num_rows for row in rows)
        return TickPlan(tick, deadline, bucket(len(rows)), bucket(total), rows), inputs

    def settle(self, gathered: Gathered, committed: bool) -> None:
        """After the step. Not committed: every session is where it was, its input waiting.

        Sessions that heard nothing keep only the newest tick of their audio.
        """
        for seat, held, audio, missing in gathered.shares:
            seat.inbox.settle(held, committed)
            if not committed:
                continue
            seat.fresh = False
            if held.live:
                seat.starved = missing == len(audio) or (missing > 0 and not seat.starved)
                seat.position += 1
                seat.inbox.counters.silence_samples += missing
            else:
                seat.inbox.keep_audio(self._budget.input_samples)
        for seat in gathered.idle if committed else ():
            seat.inbox.keep_audio(self._budget.input_samples)

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
