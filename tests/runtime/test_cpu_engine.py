"""What a step commits, line by line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.model.family import Sampling
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.engine import RowInput, TickOutputs
from microturn.runtime.plan import RowPlan, TickPlan


def step(engine: CpuEngine, *rows: RowPlan, audio: float = 0.1) -> TickOutputs:
    inputs = {
        row.session_id: RowInput(
            audio=np.full(1_600 * row.exec, audio if row.slot else 0.2, np.float32),
            context_ids=range(row.n_context),
            seed=1,
            sampling=Sampling(),
        )
        for row in rows
    }
    return engine.step(TickPlan(0, 0, 1, 1, rows), inputs)


def live(slot: int, reset: bool = False) -> RowPlan:
    return RowPlan(f"s{slot}", slot, True, reset, 0, 0, 2)


def state(engine: CpuEngine, slot: int) -> tuple[int, int, int]:
    arenas = engine.arenas
    return (
        arenas.committed("rows", slot),
        arenas.committed("frames", slot),
        int(arenas.parity[slot]),
    )


def test_only_lines_that_are_ok_advance(make_family: Any, tools: SimpleNamespace) -> None:
    engine = CpuEngine(make_family(), 3)
    step(engine, live(0, reset=True), live(1, reset=True))
    assert state(engine, 0) == state(engine, 1) == (4, 2, 1)
    made = step(engine, live(0), live(1), audio=tools.POISON)
    assert (made.rows["s0"].ok, made.rows["s1"].ok) == (True, False)
    assert state(engine, 0) == (8, 4, 0)
    assert state(engine, 1) == (4, 2, 1), "its last commit"
    assert state(engine, 2) == (0, 0, 0)


def test_lines_that_only_listen_to_context_advance_rows_and_flip_nothing(
    make_family: Any,
) -> None:
    engine = CpuEngine(make_family(), 2)
    made = step(engine, RowPlan("s1", 1, False, True, 9, 0, 0, 1), live(0, reset=True))
    assert state(engine, 1) == (10, 0, 0)
    assert state(engine, 0) == (4, 2, 1)
    assert made.rows["s1"].ok
    assert made.rows["s1"].audio.shape == (0,) and made.rows["s1"].codes.shape == (0, 2)


def test_a_step_that_raises_commits_nothing_and_can_be_repeated(make_family: Any) -> None:
    family = make_family()
    engine, other = CpuEngine(family, 1), CpuEngine(family, 1)
    for target in (engine, other):
        step(target, live(0, reset=True))
    family.raise_in = [True]
    with pytest.raises(RuntimeError, match="planted"):
        step(engine, live(0))
    assert state(engine, 0) == (4, 2, 1)
    a, b = step(engine, live(0)).rows["s0"], step(other, live(0)).rows["s0"]
    assert a.audio.tobytes() == b.audio.tobytes()


def test_warm_up_leaves_the_slots_fresh(make_family: Any) -> None:
    family = make_family()
    engine = CpuEngine(family, 2)
    engine.warm_up()
    assert state(engine, 0) == state(engine, 1) == (0, 0, 0)
    assert {(len(lines), lines[0].emits) for lines in family.fed} == {
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    }


def test_outputs_do_not_share_memory_with_the_batch(make_family: Any) -> None:
    engine = CpuEngine(make_family(), 2)
    made = step(engine, live(0, reset=True), live(1, reset=True)).rows
    assert all(row.audio.base is None for row in made.values())
