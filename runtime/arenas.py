"""Memory for sessions: the arenas a family declares, for so many slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from microturn.kernels.arena import ArenaSpec, Pages, Ring, Twice, View
from microturn.runtime.engine import SlotState

ALIGNMENT = 16
"""Bytes: where an arena begins in a saved slot, so that it can be read as any dtype."""


class Arenas:
    """Every arena, the cursors that say how much of it counts, and the commit.

    Memory comes as it is: what lies before position 0 is never read. Cursors [num_slots] int64
    and `parity [num_slots]` lie beside the state they tell of, where a tick moves them on.
    """

    def __init__(
        self,
        specs: Sequence[ArenaSpec],
        num_slots: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises ValueError when two specs share a name or there is no slot."""
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        names = [spec.name for spec in specs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"arena names must be unique, {', '.join(twice)} came more than once")
        self.num_slots = num_slots
        self.parity = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._cursors = {
            spec.cursor: torch.zeros(num_slots, dtype=torch.int64, device=device) for spec in specs
        }
        self._specs = tuple(specs)
        self._page_tables: dict[int, Tensor] = {}
        self._views = {spec.name: self._allocate(spec, device) for spec in specs}
        self.bytes = sum(spec.bytes_per_slot for spec in specs) * num_slots

    def view(self, name: str) -> View:
        """Raises KeyError naming what there is."""
        try:
            return self._views[name]
        except KeyError:
            raise KeyError(f"no arena {name!r}; there are {', '.join(self._views)}") from None

    def cursor(self, name: str) -> Tensor:
        """[num_slots] int64. Raises KeyError naming what there is."""
        try:
            return self._cursors[name]
        except KeyError:
            raise KeyError(f"no cursor {name!r}; there are {', '.join(self._cursors)}") from None

    def committed(self, cursor: str, slot: int) -> int:
        """Positions that slot has committed on `cursor`; 0 for a fresh session. Waits for a
        device.
        """
        return int(self._cursors[cursor][slot])

    def reset(self, slot: int) -> None:
        """A new tenant: every cursor of the slot is 0 again, and so is its parity."""
        for counter in self._cursors.values():
            counter[slot] = 0
        self.parity[slot] = 0

    def age(self, slot: int, positions: int) -> None:
        """So many positions are committed, all of them zeros: a slot as an old session's, to
        measure with.
        """
        for view in self._views.values():
            if isinstance(view, Ring):
                view.data[slot] = 0
            elif isinstance(view, Pages):
                view.data[view.page_table[slot].long()] = 0
        for counter in self._cursors.values():
            counter[slot] = positions

    def commit(
        self, slots: Sequence[int], advance: Mapping[str, Sequence[int]], flip: Sequence[bool]
    ) -> None:
        """Advances each cursor of slots[b] by advance[cursor][b], flips parity where flip[b].

        All or nothing. Raises ValueError on an unknown cursor, a wrong length or a step backwards.
        """
        if unknown := sorted(set(advance) - set(self._cursors)):
            raise ValueError(f"no cursor {unknown[0]!r}; there are {', '.join(self._cursors)}")
        for name, steps in advance.items():
            if len(steps) != len(slots) or any(step < 0 for step in steps):
                raise ValueError(
                    f"cursor {name!r} must advance {len(slots)} slots by 0 or more, got "
                    f"{list(steps)}"
                )
        if len(flip) != len(slots):
            raise ValueError(f"flip must have {len(slots)} entries, got {len(flip)}")
        for name, steps in advance.items():
            for slot, step in zip(slots, steps, strict=True):
                self._cursors[name][slot] += step
        flipped = [slot for slot, turn in zip(slots, flip, strict=True) if turn]
        if flipped:
            self.parity[flipped] = 1 - self.parity[flipped]

    def layout(self) -> list[dict[str, Any]]:
        """What a saved slot must have the same of, by arena: the fields of its spec."""
        return [
            {**vars(spec), "shape": list(spec.shape), "dtype": str(spec.dtype)}
            for spec in self._specs
        ]

    def save(self, slot: int) -> SlotState:
        """A copy on the host of what the slot has committed, and of nothing before it. Call between
        ticks.
        """
        cursors = {name: self.committed(name, slot) for name in self._cursors}
        on_device = self.parity.device.type == "cuda"
        size = saved_bytes(self._specs, cursors) + ALIGNMENT * len(self._specs)
        # Pinned memory is kept by torch for the next time, and is copied to at the bus's own speed.
        host = torch.empty(size, dtype=torch.uint8, pin_memory=on_device)
        data, at = {}, 0
        for spec in self._specs:
            begin = at = -(-at // ALIGNMENT) * ALIGNMENT
            for part in self._kept(spec, slot, spec.positions_kept(cursors[spec.cursor])):
                flat = part.reshape(-1).view(torch.uint8)
                host[at : at + len(flat)].copy_(flat, non_blocking=True)
                at += len(flat)
            data[spec.name] = host[begin:at].numpy()
        if on_device:
            torch.cuda.current_stream(self.parity.device).synchronize()
        return SlotState(self.layout(), cursors, data)

    def load(self, slot: int, state: SlotState) -> None:
        """The slot holds exactly what was saved. Call between ticks.

        Raises ValueError naming the first thing that does not fit; the slot is then as it was.
        """
        layout, theirs = self.layout(), [dict(arena) for arena in state.layout]
        for ours, other in zip(layout, theirs, strict=False):
            if ours != other:
                raise ValueError(f"it was saved from an arena {other}, here is {ours}")
        if len(layout) != len(theirs) or set(state.cursors) != set(self._cursors):
            raise ValueError(
                f"it was saved from {len(theirs)} arenas with cursors {sorted(state.cursors)}, "
                f"here are {len(layout)} with {sorted(self._cursors)}"
            )
        for spec in self._specs:
            count = spec.positions_kept(state.cursors[spec.cursor])
            wanted, came = count * spec.bytes_per_position, len(state.data[spec.name])
            if wanted != came:
                raise ValueError(f"{spec.name} has {came} bytes, {count} positions are {wanted}")
        self.reset(slot)
        for spec in self._specs:
            if not len(state.data[spec.name]):
                continue
            rest = torch.from_numpy(state.data[spec.name]).view(spec.dtype).view(-1, *spec.shape)
            for part in self._kept(spec, slot, len(rest)):
                part.copy_(rest[: len(part)])
                rest = rest[len(part) :]
        for name, value in state.cursors.items():
            self._cursors[name][slot] = value
            self.committed(name, slot)  # a device has it all before any queue goes on

    def _kept(self, spec: ArenaSpec, slot: int, count: int) -> list[Tensor]:
        """Views [n, *shape] of a slot's first `count` places. Positions fill places from the first
        on, pinned ones or not, until the arena is full; so these are all that was ever written.
        """
        view = self._views[spec.name]
        if isinstance(view, Twice):
            return [view.data[int(self.parity[slot]), slot : slot + count]]
        if isinstance(view, Ring):
            return [view.data[slot, :count]]
        parts = []
        for at, page in enumerate(view.page_table[slot].tolist()):
            parts.append(
                view.data[page, : max(0, min(view.page_size, count - at * view.page_size))]
            )
        return parts

    def _allocate(self, spec: ArenaSpec, device: torch.device | str) -> View:
        if spec.kind == "twice":
            return Twice(self._empty((2, self.num_slots), spec, device), self.parity)
        if spec.kind == "ring":
            data = self._empty((self.num_slots, spec.capacity), spec, device)
            return Ring(data, spec.pinned)
        if spec.capacity % spec.page_size:
            raise ValueError(
                f"{spec.name}: capacity must be whole pages of {spec.page_size}, got "
                f"{spec.capacity}"
            )
        per_slot = spec.capacity // spec.page_size
        data = self._empty((self.num_slots * per_slot, spec.page_size), spec, device)
        if per_slot not in self._page_tables:  # one for all: what is found by it is found once
            self._page_tables[per_slot] = _deal_pages(self.num_slots, per_slot).to(device)
        return Pages(data, self._page_tables[per_slot], spec.pinned)

    def _empty(self, lead: tuple[int, int], spec: ArenaSpec, device: torch.device | str) -> Tensor:
        return torch.empty(*lead, *spec.shape, dtype=spec.dtype, device=device)


def saved_bytes(specs: Sequence[ArenaSpec], cursors: Mapping[str, int]) -> int:
    """What a snapshot holds of a slot that has committed so much: nearly all of its size."""
    return sum(s.positions_kept(cursors[s.cursor]) * s.bytes_per_position for s in specs)


def _deal_pages(num_slots: int, per_slot: int) -> Tensor:
    """[num_slots, per_slot] int32: every slot owns its pages, dealt like cards from the free list,
    so that nothing can count on a slot's pages lying side by side.
    """
    free = deque(range(num_slots * per_slot))
    table = torch.empty(num_slots, per_slot, dtype=torch.int32)
    for index in range(per_slot):
        for slot in range(num_slots):
            table[slot, index] = free.popleft()
    return table
