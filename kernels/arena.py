"""Arenas: where session state lives. A session is a slot, a row of every arena.

model/ declares `ArenaSpec`s, runtime/ allocates them, ops read and write the views in place. Three
kinds:

* `Ring`: position-indexed; position p lives at p % capacity. Rows past the committed position are
  overwritten by the next tick that reaches them, so a failed tick needs no undo.
* `Pages`: position-indexed through a page table, for windows too large to hold in one run.
  Of both, the first `pinned` positions stay where they are, and the others take turns behind them.
* `Twice`: read-modify-write state, kept twice; a tick writes the other copy, commit flips `parity`.

A stream starts at position 0. Ops treat what lies before it as zeros and never read it, so a slot's
next tenant sees nothing of the last, not even its NaNs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
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
    pinned    of the capacity, kept for the first positions and never recycled (ring, pages)
    positions_per_cursor  positions written for each step of the cursor: 2 for the codec's 40 Hz
              keys behind its 20 Hz frames
    """

    name: str
    kind: ArenaKind
    shape: tuple[int, ...]
    capacity: int
    cursor: str
    dtype: torch.dtype = torch.float32
    page_size: int = LEAF
    pinned: int = 0
    positions_per_cursor: int = 1

    @property
    def bytes_per_position(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def bytes_per_slot(self) -> int:
        copies = 2 if self.kind == "twice" else self.capacity
        return copies * self.bytes_per_position

    def positions_kept(self, committed: int) -> int:
        """Positions (of twice-kept state: copies, 0 or 1) a slot holds once its cursor has
        committed so much: the first of them until the arena is full, then all of it.
        """
        return min(committed * self.positions_per_cursor, self.capacity)


def ring_capacity(window: int, max_rows_per_tick: int, multiple: int = LEAF) -> int:
    """Positions a ring needs: the window stays readable while a tick that may still fail writes
    its rows.
    """
    need = window + max_rows_per_tick
    return -(-need // multiple) * multiple


def _kept(positions: Tensor, capacity: int, pinned: int) -> Tensor:
    """Where in a slot each position is kept; `device.kv.kv_row` does the same."""
    if not pinned:
        return positions % capacity
    turning = pinned + (positions - pinned) % (capacity - pinned)
    return torch.where(positions < pinned, positions, turning)


@dataclass(frozen=True)
class _Placed(ABC):
    """data [..., ..., *shape], whose first two dimensions say where a position is kept."""

    data: Tensor

    @cached_property
    def flat(self) -> Tensor:
        """data with its first two dimensions as one, as `places` counts."""
        return self.data.view(-1, *self.data.shape[2:])

    @cached_property
    def heads(self) -> Tensor:
        """data as rows of its last dimension."""
        return self.data.view(-1, self.data.shape[-1])

    @abstractmethod
    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """int64 index into data, its first two dimensions as one; arguments broadcastable int64."""

    def put(self, places: Tensor, values: Tensor) -> None:
        """values [R, ...] to R of `places`, all different."""
        if values.dtype != self.flat.dtype:
            values = values.to(self.flat.dtype)
        if self.flat.dtype.itemsize == 1:
            self.flat[places] = values  # on a CPU index_copy_ knows no fp8
        else:
            self.flat.index_copy_(0, places, values)

    def write(self, slots: Tensor, positions: Tensor, values: Tensor) -> None:
        """slots, positions [R] int64, values [R, ...]."""
        self.put(self.places(slots, positions), values)


@dataclass(frozen=True)
class Ring(_Placed):
    """data [S, capacity, ...]: position p of slot s, unless pinned, is data[s, p % capacity]."""

    pinned: int = 0

    @cached_property
    def capacity(self) -> int:
        return int(self.data.shape[1])

    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """int64 index into data, its first two dimensions as one; arguments broadcastable int64."""
        return slots * self.capacity + _kept(positions, self.capacity, self.pinned)

    @cached_property
    def places_key(self) -> tuple[Hashable, ...]:
        """Two rings of one key have the same `places`."""
        return self.capacity, self.pinned

    def read(self, slots: Tensor, positions: Tensor) -> Tensor:
        """slots, positions broadcastable int64 -> [..., *shape]; the caller masks positions < 0."""
        return self.data[slots, _kept(positions, self.capacity, self.pinned)]


@dataclass(frozen=True)
class Pages(_Placed):
    """data [num_pages, page_size, ...]; page_table [S, pages_per_slot] int32.

    Position p of slot s, unless pinned, is
    data[page_table[s, p // page_size % pages_per_slot], p % page_size].
    """

    page_table: Tensor
    pinned: int = 0

    @cached_property
    def page_size(self) -> int:
        return int(self.data.shape[1])

    @cached_property
    def capacity(self) -> int:
        return self.page_size * int(self.page_table.shape[1])

    def _find(self, slots: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Page, and place in it."""
        kept = _kept(positions, self.capacity, self.pinned)
        index = kept.div(self.page_size, rounding_mode="floor")
        return self.page_table[slots, index].long(), kept % self.page_size

    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """int64 index into data, its first two dimensions as one; arguments broadcastable int64."""
        page, place = self._find(slots, positions)
        return page * self.page_size + place

    @cached_property
    def places_key(self) -> tuple[Hashable, ...]:
        """Two arenas of one key have the same `places`, while nobody writes their page table."""
        return self.page_table, self.page_size, self.pinned

    def read(self, slots: Tensor, positions: Tensor) -> Tensor:
        """slots, positions broadcastable int64 -> [..., *shape]; the caller masks positions < 0."""
        return self.data[self._find(slots, positions)]


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
