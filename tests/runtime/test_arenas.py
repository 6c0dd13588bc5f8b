"""Session memory: views, cursors, commit, pages."""

from __future__ import annotations

import pytest
import torch

from microturn.kernels.arena import ArenaSpec, Pages, Twice
from microturn.runtime.arenas import Arenas

SPECS = (
    ArenaSpec("ring", "ring", (2,), 16, "rows"),
    ArenaSpec("pages", "pages", (2,), 32, "rows", page_size=8),
    ArenaSpec("twice", "twice", (3,), 1, "frames"),
)


def test_a_commit_advances_cursors_and_flips_only_where_told() -> None:
    arenas = Arenas(SPECS, 3)
    arenas.commit([2, 0], {"rows": [5, 1], "frames": [2, 0]}, [True, False])
    assert [arenas.committed("rows", s) for s in range(3)] == [1, 0, 5]
    assert [arenas.committed("frames", s) for s in range(3)] == [0, 0, 2]
    assert arenas.parity.tolist() == [0, 0, 1]
    arenas.reset(2)
    assert arenas.committed("rows", 2) == arenas.committed("frames", 2) == 0
    assert arenas.committed("rows", 0) == 1


@pytest.mark.parametrize(
    ("advance", "flip"),
    [
        ({"rows": [1, 1], "bars": [1, 1]}, [True, True]),
        ({"frames": [1, 1], "rows": [1]}, [True, True]),
        ({"frames": [1, 1], "rows": [1, -1]}, [True, True]),
        ({"rows": [1, 1]}, [True]),
    ],
)
def test_a_bad_commit_changes_nothing(advance: dict[str, list[int]], flip: list[bool]) -> None:
    arenas = Arenas(SPECS, 2)
    with pytest.raises(ValueError):
        arenas.commit([0, 1], advance, flip)
    assert [arenas.committed(c, s) for c in ("rows", "frames") for s in (0, 1)] == [0] * 4
    assert arenas.parity.tolist() == [0, 0]


def test_twice_kept_state_is_seen_after_the_commit_only() -> None:
    arenas = Arenas(SPECS, 2)
    view = arenas.view("twice")
    assert isinstance(view, Twice)
    slots = torch.tensor([1])
    view.write(slots, torch.ones(1, 3))
    arenas.commit([1], {}, [True])
    view.write(slots, torch.full((1, 3), 2.0))
    assert view.read(slots).tolist() == [[1.0] * 3]
    view.write(slots, torch.full((1, 3), 3.0))
    arenas.commit([1], {}, [True])
    assert view.read(slots).tolist() == [[3.0] * 3]


def test_pages_belong_to_one_slot_each_and_are_not_in_a_row() -> None:
    arenas = Arenas(SPECS, 3)
    view = arenas.view("pages")
    assert isinstance(view, Pages)
    pages = view.page_table.flatten().tolist()
    assert sorted(pages) == list(range(12))
    assert view.page_table[0].diff().ne(1).all()
    for slot in range(3):
        at = torch.arange(32)
        view.write(torch.full((32,), slot), at, torch.full((32, 2), float(slot)))
    for slot in range(3):
        read = view.read(torch.full((32,), slot), torch.arange(32))
        assert read.eq(slot).all()


def test_memory_is_what_the_specs_say() -> None:
    arenas = Arenas(SPECS, 3)
    held = sum(arenas.view(spec.name).data.nbytes for spec in SPECS)
    assert arenas.bytes == held


def test_what_cannot_be_allocated_is_said() -> None:
    with pytest.raises(ValueError, match="ring came more than once"):
        Arenas((*SPECS, SPECS[0]), 1)
    with pytest.raises(ValueError, match="num_slots"):
        Arenas(SPECS, 0)
    with pytest.raises(ValueError, match="whole pages of 8, got 12"):
        Arenas((ArenaSpec("odd", "pages", (2,), 12, "rows", page_size=8),), 1)
    with pytest.raises(KeyError, match="there are ring, pages, twice"):
        Arenas(SPECS, 1).view("rings")
