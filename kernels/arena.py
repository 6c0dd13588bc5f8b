"""Arenas: where session state lives. A session is a slot, a row of every arena.

model/ declares `ArenaSpec`s, runtime/ allocates them, ops read and write the views in place. Three
kinds:

* `Ring`: position-indexed; position p lives at p % capacity. Rows past the committed position are
  overwritten by the next tick that reaches them, so a failed tick needs no undo.
* `Pages`: position-indexed through a page table, for windows too large to hold in one run.
* `Twice`: read-modify-write state, kept twice; a tick writes the other copy, commit flips `parity`.

A stream starts at position 0. Ops treat what lies before it as zeros and never read it, so a slot's
next tenant sees nothing of the last, not even its NaNs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LEAF = 128
"""Keys in one leaf of attention (DESIGN 2): rings and windows of keys are whole leaves."""

ArenaKind = Literal["ring", "pages", "twice"]


@dataclass(frozen=True)
class ArenaSpec:
    """One arena, as a model declares it.

    name      unique in the family, dotted ("trunk.3.kv.k")
    kind      how state is indexed and committed
    shape     of one position (ring, pages) or of the whole slot (twice)
    capacity  positions kept for a slot (ring, pages); 1 for twice
    cursor    the counter whose committed value positions this state ("rows", "frames")
    page_size positions in a page (pages only)
    """

    name: str
    kind: ArenaKind
    shape: tuple[int, ...]
    capacity: int
    cursor: str
    dtype: torch.dtype = torch.float32
    page_size: int = LEAF

    @property
    def bytes_per_slot(self) -> int:
        copies = 2 if self.kind == "twice" else self.capacity
        size = copies * self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size


def ring_capacity(window: int, max_rows_per_tick: int, multiple: int = LEAF) -> int:
    """Positions a ring needs: the window stays readable while a tick that may still fail writes
    its rows.
    """
    need = window + max_rows_per_tick
    return -(-need // multiple) * multiple


@dataclass(frozen=True)
class Ring:
    """data [S, capacity, ...]: position p of slot s is data[s, p % capacity]."""

    data: Tensor

    @property
    def capacity(self) -> int:
        return int(self.data.shape[1])

    def write(self, slots: Tensor, positions: Tensor, values: Tensor) -> None:
        """slots, positions [R] int64, values [R, ...]."""
        self.data[slots, positions % self.capacity] = values.to(self.data.dtype)

    def read(self, slots: Tensor, positions: Tensor) -> Tensor:
        """slots, positions broadcastable int64 -> [..., *shape]; the caller masks positions < 0."""
        return self.data[slots, positions % self.capacity]

    def leaf(self, slot: int, index: int) -> Tensor:
        """[LEAF, ...] view of positions index * LEAF and on: never split, capacity is whole
        leaves.
        """
        start = index * LEAF % self.capacity
        return self.data[slot, start : start + LEAF]


@dataclass(frozen=True)
class Pages:
    """data [num_pages, page_size, ...]; page_table [S, pages_per_slot] int32.

    Position p of slot s is data[page_table[s, p // page_size % pages_per_slot], p % page_size].
    """

    data: Tensor
    page_table: Tensor

    @property
    def page_size(self) -> int:
        return int(self.data.shape[1])

    @property
    def capacity(self) -> int:
        return self.page_size * int(self.page_table.shape[1])

    def _page(self, slots: Tensor, positions: Tensor) -> Tensor:
        index = positions.div(self.page_size, rounding_mode="floor") % self.page_table.shape[1]
        return self.page_table[slots, index].long()

    def write(self, slots: Tensor, positions: Tensor, values: Tensor) -> None:
        """slots, positions [R] int64, values [R, ...]."""
        self.data[self._page(slots, positions), positions % self.page_size] = values.to(
            self.data.dtype
        )

    def read(self, slots: Tensor, positions: Tensor) -> Tensor:
        """slots, positions broadcastable int64 -> [..., *shape]; the caller masks positions < 0."""
        return self.data[self._page(slots, positions), positions % self.page_size]

    def leaf(self, slot: int, index: int) -> Tensor:
        """[LEAF, ...] view of positions index * LEAF and on (page_size is a multiple of LEAF)."""
        per_page = self.page_size // LEAF
        page = int(self.page_table[slot, index // per_page % self.page_table.shape[1]])
        start = index % per_page * LEAF
        return self.data[page, start : start + LEAF]


@dataclass(frozen=True)
class Twice:
    """data [2, S, ...]; parity [S] int64: data[parity[s], s] is committed, a tick writes the other
    copy.

    An op may read and write a slot once a tick: what it wrote is seen after commit flips parity.
    """

    data: Tensor
    parity: Tensor

    def read(self, slots: Tensor) -> Tensor:
        """slots [B] int64 -> [B, ...]."""
        return self.data[self.parity[slots], slots]

    def write(self, slots: Tensor, values: Tensor) -> None:
        """slots [B] int64, values [B, ...]."""
        self.data[1 - self.parity[slots], slots] = values.to(self.data.dtype)


View = Ring | Pages | Twice
