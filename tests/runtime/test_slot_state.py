"""A slot's state, taken out of one engine's arenas and put into another's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from microturn.kernels.arena import ArenaSpec, Pages, Ring, Twice
from microturn.model.family import Sampling
from microturn.runtime.arenas import Arenas, saved_bytes
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.engine import RowInput, SavesSlots, SlotState
from microturn.runtime.plan import RowPlan, TickPlan


def run(engine: CpuEngine, slot: int, ticks: Sequence[int], seed: int = 7) -> list[bytes]:
    """One session's ticks, tick 0 with a reset."""
    made = []
    for tick in ticks:
        audio = np.random.default_rng(tick).standard_normal(1_600).astype(np.float32) * 0.1
        given = RowInput(audio, (3, 4), seed, Sampling())
        row = RowPlan("s", slot, True, tick == 0, 2, 0, 2)
        out = engine.step(TickPlan(tick, 0, 1, 8, (row,)), {"s": given}).rows["s"]
        made.append(out.audio.tobytes() + out.codes.tobytes() + out.text_ids.tobytes())
    return made


@pytest.mark.parametrize("ticks", [1, 2, 5, 30])
def test_a_slot_goes_on_in_another_engine_bit_for_bit(make_family: Any, ticks: int) -> None:
    """30 ticks go round the ring and the pages; odd and even ones have either parity."""
    here, there = CpuEngine(make_family(), 2), CpuEngine(make_family(), 3)
    assert isinstance(here, SavesSlots)
    run(there, 2, range(9), seed=1)
    run(here, 1, range(ticks))
    there.load_slot(2, here.save_slot(1))
    after = range(ticks, ticks + 6)
    assert run(there, 2, after) == run(here, 1, after)


@pytest.mark.parametrize("arena", ["ring", "pages", "sum"])
def test_every_arena_counts(make_family: Any, arena: str) -> None:
    """The control: a changed byte of any arena changes what comes."""
    here, there = CpuEngine(make_family(), 1), CpuEngine(make_family(), 1)
    run(here, 0, range(3))
    saved = here.save_slot(0)
    data = {name: value.copy() for name, value in saved.data.items()}
    data[arena][-2] ^= 0x20
    there.load_slot(0, dataclasses.replace(saved, data=data))
    assert run(there, 0, range(3, 5)) != run(here, 0, range(3, 5))


def test_nothing_of_a_former_tenant_is_saved(make_family: Any) -> None:
    engine, clean = CpuEngine(make_family(), 1), CpuEngine(make_family(), 1)
    run(engine, 0, range(20), seed=1)
    for target in (engine, clean):
        run(target, 0, range(2))
    saved, want = engine.save_slot(0), clean.save_slot(0)
    assert {k: v.tobytes() for k, v in saved.data.items()} == {
        k: v.tobytes() for k, v in want.data.items()
    }
    engine.arenas.reset(0)
    assert not any(len(data) for data in engine.save_slot(0).data.values())


def test_a_saved_slot_is_a_copy(make_family: Any) -> None:
    engine = CpuEngine(make_family(), 1)
    run(engine, 0, range(3))
    saved = engine.save_slot(0)
    before = {name: value.tobytes() for name, value in saved.data.items()}
    run(engine, 0, range(3, 9))
    assert {name: value.tobytes() for name, value in saved.data.items()} == before


def test_state_of_other_arenas_is_refused_and_changes_nothing(make_family: Any) -> None:
    here, other = CpuEngine(make_family(), 1), CpuEngine(make_family(max_rows=32), 1)
    for engine in (here, other):
        run(engine, 0, range(3))
    saved, foreign = here.save_slot(0), other.save_slot(0)
    short = {**saved.data, "sum": saved.data["sum"][:-1]}
    bad: list[tuple[SlotState, str]] = [
        (foreign, "saved from an arena {'name': 'ring'.*here is {'name': 'ring'"),
        (dataclasses.replace(saved, layout=saved.layout[:2]), "2 arenas.*here are 3"),
        (dataclasses.replace(saved, data=short), "sum has 15 bytes, 1 positions are 16"),
    ]
    for state, says in bad:
        with pytest.raises(ValueError, match=says):
            here.load_slot(0, state)
    fresh = CpuEngine(make_family(), 1)
    run(fresh, 0, range(3))
    assert run(here, 0, range(3, 6)) == run(fresh, 0, range(3, 6))


PINNED = (
    ArenaSpec("ring", "ring", (3,), 16, "rows", torch.bfloat16, pinned=3, positions_per_cursor=2),
    ArenaSpec("pages", "pages", (2,), 32, "rows", page_size=8, pinned=5),
)
IDS = ArenaSpec("ids", "twice", (3,), 1, "rows", torch.int64)


@pytest.mark.parametrize("rows", [1, 7, 8, 15, 16, 40])
def test_pinned_positions_and_the_newest_come_along(rows: int) -> None:
    """Keys that are never recycled, of an arena that writes two positions a row and of one in
    pages: all that can be read here can be read there.
    """
    here, there = Arenas((*PINNED, IDS), 2), Arenas((*PINNED, IDS), 3)
    for spec in PINNED:
        view, at = here.view(spec.name), torch.arange(rows * spec.positions_per_cursor)
        assert isinstance(view, Ring | Pages)
        for k in at.tolist():
            view.write(torch.tensor([1]), torch.tensor([k]), torch.full((1, *spec.shape), k))
    ids, moved_ids = here.view("ids"), there.view("ids")
    assert isinstance(ids, Twice) and isinstance(moved_ids, Twice)
    ids.write(torch.tensor([1]), torch.tensor([[rows, -1, 1 << 40]]))
    here.commit([1], {"rows": [rows]}, [True])
    saved = here.save(1)
    assert saved_bytes((*PINNED, IDS), saved.cursors) == sum(map(len, saved.data.values()))
    assert [len(saved.data[s.name]) // s.bytes_per_position for s in PINNED] == [
        min(2 * rows, 16),
        min(rows, 32),
    ]
    there.load(2, saved)
    assert there.committed("rows", 2) == rows
    assert moved_ids.read(torch.tensor([2])).tolist() == [[rows, -1, 1 << 40]]
    for spec in PINNED:
        count = rows * spec.positions_per_cursor
        turning = spec.capacity - spec.pinned
        kept = [k for k in range(count) if k < spec.pinned or k >= count - turning]
        view = there.view(spec.name)
        assert isinstance(view, Ring | Pages)
        got = view.read(torch.full((len(kept),), 2), torch.tensor(kept))
        assert got[:, 0].tolist() == kept
