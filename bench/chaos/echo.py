"""A model that says back what it hears and hashes what it is told: all it says can be checked.

Its engine keeps real state in slots and commits as DESIGN 4 asks; faults are planted in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from microturn.model.family import TickShape
from microturn.runtime.clock import VirtualClock
from microturn.runtime.engine import RowInput, RowOutput, TickOutputs
from microturn.runtime.errors import EngineLost
from microturn.runtime.plan import RowPlan, TickPlan

SHAPE = TickShape(
    tick_ms=100,
    frames=1,
    input_rate=1_000,
    input_samples=100,
    output_rate=1_000,
    output_samples=100,
    num_codebooks=8,
    codebook_size=2**31,
    max_rows=8,
)
MODULUS = 2**31 - 1
UNSPEAKABLE = 999
"""A token whose text cannot be made."""

NOTHING = np.empty(0, np.int64)
NO_CODES = np.empty((0, SHAPE.num_codebooks), np.int64)
SILENT = np.zeros(1, np.int64)


def told(digest: int, token_id: int) -> int:
    """The hash of what was told, with one id more."""
    return (digest * 48_271 + token_id + 1) % MODULUS


def picture(number: int, patches: int, still: bool) -> NDArray[np.uint8]:
    """[40 * patches, 39, 3]: an image of one column of patches, each of which says which it is."""
    image = np.empty((40 * patches, 39, 3), np.uint8)
    image[:, :, 0], image[:, :, 1] = number // 256, number % 256
    image[:, :, 2] = np.repeat(16 * np.arange(patches) + 2 * (patches - 1) + still, 40)[:, None]
    return image


class Seen(NamedTuple):
    """What a session was shown until now.

    images  that were begun; stills among them; number of the last; left: patches of it still to
            come; wrong: patches out of place
    """

    images: int = 0
    stills: int = 0
    number: int = -1
    left: int = 0
    wrong: int = 0

    def see(self, patch: NDArray[np.int16]) -> Seen:
        """With one patch more."""
        high, low, place = map(int, patch[1, 0, 0])
        number, at, of, still = high * 256 + low, place // 16, place % 16 // 2 + 1, place % 2
        # The moment before is of the frame shown before, or the same.
        before = int(patch[0, 0, 0, 0]) * 256 + int(patch[0, 0, 0, 1])
        good = before == number if still else before <= number
        if self.left:
            good &= number == self.number and at == of - self.left
            return self._replace(left=self.left - 1, wrong=self.wrong + (not good))
        good &= number > self.number and at == 0
        return Seen(self.images + 1, self.stills + still, number, of - 1, self.wrong + (not good))


class State(NamedTuple):
    """Of a slot: samples heard that were not silence, ids told, their hash, what was seen."""

    heard: int = 0
    ids: int = 0
    digest: int = 0
    seen: Seen = Seen()


class EchoTokenizer:
    """Numbers are words; `!` is more than memory holds."""

    def encode(self, text: str) -> list[int]:
        if text == "!":
            raise MemoryError("planted")
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(self.piece, ids))

    def piece(self, token_id: int) -> str:
        if token_id == UNSPEAKABLE:
            raise ValueError("planted")
        return str(token_id)


class EchoFamily:
    """What a runtime asks of a family when it is given an engine."""

    name = "echo"
    trained = False
    sees = True
    listen_id = 0
    delegate_id = 1
    speak_ids = ()
    shape = SHAPE
    tokenizer = EchoTokenizer()

    def digest(self) -> str:
        return "echo"


@dataclass(frozen=True)
class Call:
    """A step as it was: its plan, when it ended, whether it raised. One that was launched ends
    when it is collected.
    """

    plan: TickPlan
    end: int
    raised: bool


class Ticket(NamedTuple):
    """A launched step, when the device is done with it, and what that takes in ns."""

    plan: TickPlan
    made: TickOutputs
    ready: int
    took: int


class EchoEngine:
    """Steps take `takes(rows)` ns of the clock.

    Codes of a row: samples heard that were not silence, ids told, their hash, the seed, and of what
    was seen images, stills, the last's number, patches out of place.

    faults     by session: an error its row raises, or "nan", "unspeakable"
    transient  raised by so many next steps whatever is in them
    during     called inside the next step: what other threads do meanwhile
    calls      of the present tick, for whoever clears it
    """

    state_bytes = 0

    def __init__(
        self, num_slots: int, clock: VirtualClock, takes: Callable[[int], int] = lambda rows: 0
    ) -> None:
        self.num_slots = num_slots
        self._clock = clock
        self.takes = takes
        self.faults: dict[str, Exception | str] = {}
        self.transient = 0
        self.during: list[Callable[[], Any]] = []
        self.calls: list[Call] = []
        self.lost = False
        self._state = [State()] * num_slots
        self._busy = 0
        self.step_ms = 0.0

    def step(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> TickOutputs:
        self._clock.advance(self.takes(len(plan.rows)))
        made = self._made(plan, inputs)
        self.calls.append(Call(plan, self._clock.now(), False))
        return made

    def launch(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> Ticket:
        """See overlap.Launches: the device begins when it is done with what it was asked before."""
        made = self._made(plan, inputs)
        took = self.takes(len(plan.rows))
        self._busy = max(self._busy, self._clock.now()) + took
        return Ticket(plan, made, self._busy, took)

    def collect(self, ticket: Ticket) -> TickOutputs:
        self._clock.advance(max(0, ticket.ready - self._clock.now()))
        self.calls.append(Call(ticket.plan, self._clock.now(), False))
        self.step_ms = ticket.took / 1e6
        return ticket.made

    def _made(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> TickOutputs:
        try:
            made, states = self._rows(plan, inputs)
        except Exception:
            self.calls.append(Call(plan, self._clock.now(), True))
            raise
        for row in plan.rows:
            if made[row.session_id].ok:
                self._state[row.slot] = states[row.session_id]
        return TickOutputs(made)

    def _rows(
        self, plan: TickPlan, inputs: Mapping[str, RowInput]
    ) -> tuple[dict[str, RowOutput], dict[str, State]]:
        while self.during:
            self.during.pop()()
        if self.lost:
            raise EngineLost("planted")
        if self.transient:
            self.transient -= 1
            raise RuntimeError("planted")
        made, states = {}, {}
        for row in plan.rows:
            fault = self.faults.get(row.session_id) if self.faults else None
            if isinstance(fault, Exception):
                raise fault
            given = inputs[row.session_id]
            states[row.session_id] = state = self._fed(row, given)
            made[row.session_id] = _said(row, given, state, fault)
        return made, states

    def _fed(self, row: RowPlan, given: RowInput) -> State:
        heard, count, digest, seen = State() if row.reset else self._state[row.slot]
        for token_id in given.context_ids:
            digest = told(digest, token_id)
        count += row.n_context
        if row.exec:
            heard += int(np.count_nonzero(given.audio))
        for patch in given.patches[: row.n_patches]:
            seen = seen.see(patch)
        return State(heard, count, digest, seen)

    def warm_up(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to give back."""


def _said(row: RowPlan, given: RowInput, state: State, fault: str | None) -> RowOutput:
    if not row.exec:
        return RowOutput(fault != "nan", NOTHING, NO_CODES, given.audio)
    text = np.array([UNSPEAKABLE]) if fault == "unspeakable" else SILENT
    heard, count, digest, seen = state
    shown = (seen.images, seen.stills, seen.number, seen.wrong)
    codes = np.array([(heard, count, digest, given.seed, *shown)], np.int64)
    return RowOutput(fault != "nan", text, codes, given.audio)
