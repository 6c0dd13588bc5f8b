"""The `ops` suite: one op, one shape, one dtype at a time, by every provider that does that work.

Each result is compared with the reference first; what is wrong is not timed. The fields of its
rows are in `bench.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from microturn.bench import check, rows
from microturn.bench.providers.base import Call, DoesLess, Provider, Unavailable
from microturn.bench.rows import OURS, Row
from microturn.bench.subjects import Item, Subject, case_of, get
from microturn.kernels.registry import Case, OpInputs
from microturn.kernels.testing import DTYPES, MAX_ERROR, to_device
from microturn.runtime.ceilings import Ceilings
from microturn.runtime.timing import Timer

NOTE_CHARACTERS = 600
"""Of an error's text, the end of it: where compilers say what is wrong."""


class DeviceLost(Exception):
    """After this, nothing runs in the process any more."""


@dataclass(frozen=True)
class Bench:
    """One way to measure.

    overhead  of the timer, measured once
    find      what measures come from: `subjects.get`
    announce  told each provider's name before it starts, so that a process that dies is no riddle
    """

    timer: Timer
    ceilings: Ceilings
    seed: int = 0
    overhead: dict[str, float] = field(default_factory=dict)
    find: Callable[[str], Subject] = get
    announce: Callable[[str], None] = field(default=lambda provider: None)

    @property
    def device(self) -> torch.device:
        return self.timer.device

    def measure(self, item: Item, providers: Sequence[Provider]) -> Iterator[Row]:
        """A row of each provider that supports the item."""
        subject = self.find(item.op)
        case = case_of(subject, item.case)
        some = [p for p in providers if p.supports(item.op, case, item.dtype)]
        if not some:
            return
        try:
            one = _Shape(self, subject, case, item)
        except torch.OutOfMemoryError as error:
            for provider in some:
                yield rows.null(item, provider.name, _text(error), None)
            return
        for provider in some:
            self.announce(provider.name)
            yield one.row(provider)
            one.forget()


class _Shape:
    """One item: its inputs, and what every result of them should be."""

    def __init__(self, bench: Bench, subject: Subject, case: Case, item: Item) -> None:
        self.bench, self.case, self.item = bench, case, item
        self.subject = subject
        self.known = rows.costs(case, item.dtype, bench.ceilings)
        with torch.inference_mode():
            self.inputs = subject.make_inputs(
                case, seed=bench.seed, dtype=DTYPES[item.dtype], device=bench.device
            )
        self.nbytes = check.nbytes(tuple(self.inputs))
        self.expected: check.Expected | None = None

    def row(self, provider: Provider) -> Row:
        """Whatever goes wrong becomes its note. Raises DeviceLost."""
        try:
            with torch.inference_mode():
                return self._row(provider)
        except Unavailable as error:
            return rows.null(self.item, provider.name, _text(error, named=False), None)
        except check.Uncheckable as error:
            return rows.null(self.item, provider.name, f"not checked: {error}", None)
        except torch.OutOfMemoryError as error:
            return rows.null(self.item, provider.name, _text(error), None)
        except Exception as error:  # peers raise anything; ours is a failure
            self._still_there(error)
            return rows.null(self.item, provider.name, _text(error), False)

    def _row(self, provider: Provider) -> Row:
        expected, notes = self._expected(provider)
        inputs = self._copy()
        call = self._prepared(provider, inputs)
        found = call()
        error = check.error(found, expected.result)
        if provider.name == OURS:
            error = max(error, check.error(inputs.state, expected.state))
        if error > MAX_ERROR[self.item.dtype]:
            wrong = f"wrong: error ratio {error:.3g}, {MAX_ERROR[self.item.dtype]} allowed"
            return rows.null(self.item, provider.name, "; ".join((wrong, *notes)), False)
        del found
        moved = self.known["bytes"]
        copies = self.bench.timer.copies(moved, self.nbytes)
        calls = [call, *(self._prepared(provider, self._copy()) for _ in range(copies - 1))]
        times = self.bench.timer.time(calls, moved)
        bar = rows.bar_of(self.case, self.subject.dtypes, self.item.dtype)
        note = "; ".join(notes)
        return rows.timed(self.item, provider.name, self.known, times, error, copies, bar, note)

    def _expected(self, provider: Provider) -> tuple[check.Expected, list[str]]:
        """What the provider's result should be, and what is to be said of it."""
        if isinstance(provider, DoesLess):
            own = provider.expected(
                self.item.op, self.case, self.item.dtype, OpInputs(*self._copy())
            )
            if own is not None:
                return check.Expected(own[0], None), [f"leaves out {own[1]}"]
        if self.expected is None:
            self.expected = check.expected(self.subject.reference, self.inputs, self.bench.device)
        return self.expected, [self.expected.note] * bool(self.expected.note)

    def _prepared(self, provider: Provider, inputs: OpInputs) -> Call:
        return provider.prepare(self.item.op, self.case, self.item.dtype, inputs, self.bench.device)

    def _copy(self) -> OpInputs:
        """Inputs that nobody else has."""
        return OpInputs(*to_device(tuple(self.inputs), self.bench.device))

    def _still_there(self, error: Exception) -> None:
        if self.bench.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.bench.device)
        except RuntimeError:
            raise DeviceLost(_text(error)) from error

    def forget(self) -> None:
        """Gives memory of the last provider back."""
        if self.bench.device.type == "cuda":
            torch.cuda.empty_cache()


def failed(found: Sequence[Row]) -> list[Row]:
    """Rows of microturn itself that are wrong or could not be computed."""
    return [row for row in found if row["provider"] == OURS and row.get("ok") is False]


def _text(error: BaseException, *, named: bool = True) -> str:
    text: Any = str(error).strip()
    text = text if len(text) <= NOTE_CHARACTERS else "... " + text[-NOTE_CHARACTERS:]
    return f"{type(error).__name__}: {text}" if named else text
