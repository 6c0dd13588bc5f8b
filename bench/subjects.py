"""What the ops suites measure: every op that has shapes to measure, and compositions of ops.

A composition is a module of `microturn.bench` named in COMPOSED. It has what an op has: CASES,
BENCH_CASES, DTYPES, `make_inputs(case, *, seed, dtype, device) -> OpInputs`,
`run(x, weights, state, rows)`, and `reference` of the same signature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from microturn.bench.schema import COMPOSED
from microturn.kernels.registry import OPS, Case, OpInputs

ITEMSIZES = {"fp32": (4, 4), "fp16": (2, 2), "bf16": (2, 2), "fp8": (2, 1)}
"""Bytes of a value, and of a streamed one, by the names of dtypes in results."""


class Subject(Protocol):
    """Something with shapes, inputs, a fast form and a reference; `kernels.registry.Op` is one."""

    @property
    def name(self) -> str: ...
    @property
    def cases(self) -> tuple[Case, ...]: ...
    @property
    def bench_cases(self) -> tuple[Case, ...]: ...
    @property
    def dtypes(self) -> tuple[str, ...]: ...
    @property
    def make_inputs(self) -> Callable[..., OpInputs]: ...
    @property
    def run(self) -> Callable[..., Any]: ...
    @property
    def reference(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Composed:
    """A composition, as a subject."""

    name: str

    @cached_property
    def _module(self) -> Any:
        return import_module(f"microturn.bench.{self.name}")

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(self._module.CASES)

    @property
    def bench_cases(self) -> tuple[Case, ...]:
        return tuple(self._module.BENCH_CASES)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return getattr(self._module, "DTYPES", ("bf16",))

    @property
    def make_inputs(self) -> Callable[..., OpInputs]:
        return self._module.make_inputs  # type: ignore[no-any-return]

    @property
    def run(self) -> Callable[..., Any]:
        return self._module.run  # type: ignore[no-any-return]

    @property
    def reference(self) -> Callable[..., Any]:
        return self._module.reference  # type: ignore[no-any-return]


def subjects() -> dict[str, Subject]:
    """By name, ops first."""
    found: dict[str, Subject] = dict(OPS)
    for name in COMPOSED:
        if find_spec(f"microturn.bench.{name}") is not None:
            found[name] = Composed(name)
    return found


def get(name: str) -> Subject:
    """Raises KeyError naming the known ones."""
    known = subjects()
    if name not in known:
        raise KeyError(f"unknown op {name!r}; known: {', '.join(known)}")
    return known[name]


class Item(NamedTuple):
    """One shape of one op in one dtype: what all providers are compared on."""

    op: str
    case: str
    dtype: str


def case_of(subject: Subject, case_id: str) -> Case:
    """Raises KeyError."""
    for case in (*subject.bench_cases, *subject.cases):
        if case.id == case_id:
            return case
    raise KeyError(f"{subject.name} has no case {case_id!r}")


def nbytes(case: Case, dtype: str) -> int:
    """What a call must move at least once."""
    itemsize, streamed = ITEMSIZES[dtype]
    return case.bytes(itemsize) if streamed == itemsize else case.bytes(itemsize, streamed)


def select(
    ops: Sequence[str] = (),
    cases: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    *,
    small: bool = False,
) -> tuple[Item, ...]:
    """Every op's bench cases in every dtype of the op; small: its small cases in fp32.

    cases   parts of ids: "T=8" takes every case with T=8, "T=8,H=4096" those with both
    Raises KeyError for an unknown op, ValueError where nothing is left.
    """
    chosen = [get(name) for name in ops] if ops else list(subjects().values())
    found = tuple(_items(chosen, cases, dtypes, small))
    if found:
        return found
    shown = [c.id for s in chosen for c in (s.cases if small else s.bench_cases)]
    if not shown:
        raise ValueError(f"{', '.join(s.name for s in chosen)}: no case to measure on a GPU yet")
    asked = [f"case {' or '.join(cases)}"] * bool(cases) + [f"dtype {'/'.join(dtypes)}"] * bool(
        dtypes
    )
    known = sorted({d for s in chosen for d in (("fp32",) if small else s.dtypes)})
    raise ValueError(
        f"no {' in '.join(asked)}; dtypes: {', '.join(known)}; cases: {'; '.join(shown[:12])}"
        + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
    )


def _items(
    chosen: Sequence[Subject], cases: Sequence[str], dtypes: Sequence[str], small: bool
) -> Iterator[Item]:
    for subject in chosen:
        for case in subject.cases if small else subject.bench_cases:
            parts = set(case.id.split(","))
            if cases and not any(set(asked.split(",")) <= parts for asked in cases):
                continue
            for dtype in ("fp32",) if small else subject.dtypes:
                if not dtypes or dtype in dtypes:
                    yield Item(subject.name, case.id, dtype)
