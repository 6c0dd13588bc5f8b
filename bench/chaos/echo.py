"""A model that says back what it hears and hashes what it is told: all it says can be checked.

Its engine keeps real state in slots and commits as DESIGN 4 asks; faults are planted in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    num_codebooks=4,
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
    sees = False
    listen_id = 0
    delegate_id = 1
    speak_ids = ()
    shape = SHAPE
    tokenizer = EchoTokenizer()

    def digest(self) -> str:
        return "echo"


@dataclass(frozen=True)
class Call:
    """A step as it was: its plan, when it ended, whether it raised."""

    plan: TickPlan
    end: int
    raised: bool


class EchoEngine:
    """Steps take `takes(rows)` ns of the clock.

    Codes of a row: samples heard that were not silence, ids told, their hash, the seed.

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
        self._state = [(0, 0, 0)] * num_slots

    def step(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> TickOutputs:
        self._clock.advance(self.takes(len(plan.rows)))
        try:
            made, states = self._rows(plan, inputs)
        except Exception:
            self.calls.append(Call(plan, self._clock.now(), True))
            raise
        for row in plan.rows:
            if made[row.session_id].ok:
                self._state[row.slot] = states[row.session_id]
        self.calls.append(Call(plan, self._clock.now(), False))
        return TickOutputs(made)

    def _rows(
        self, plan: TickPlan, inputs: Mapping[str, RowInput]
    ) -> tuple[dict[str, RowOutput], dict[str, tuple[int, int, int]]]:
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

    def _fed(self, row: RowPlan, given: RowInput) -> tuple[int, int, int]:
        heard, count, digest = (0, 0, 0) if row.reset else self._state[row.slot]
        for token_id in given.context_ids:
            digest = told(digest, token_id)
        count += row.n_context
        if row.exec:
            heard += int(np.count_nonzero(given.audio))
        return heard, count, digest

    def warm_up(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to give back."""


def _said(
    row: RowPlan, given: RowInput, state: tuple[int, int, int], fault: str | None
) -> RowOutput:
    if not row.exec:
        return RowOutput(fault != "nan", NOTHING, NO_CODES, given.audio)
    text = np.array([UNSPEAKABLE]) if fault == "unspeakable" else SILENT
    codes = np.array([(*state, given.seed)], np.int64)
    return RowOutput(fault != "nan", text, codes, given.audio)
