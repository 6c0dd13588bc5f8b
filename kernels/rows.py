"""Which rows of a packed step belong to which session slot, and where in its stream each row
stands.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Line(NamedTuple):
    """One batch row on the host: rows[start:stop] are consecutive positions of slot's stream."""

    slot: int
    start: int
    stop: int
    position: int


@dataclass(frozen=True)
class RowBatch:
    """B lines packed into T rows.

    Worked example: slot 5 brings three rows from position 40, slot 2 one row at position 7:
    `slot_ids [5, 2]`, `row_offsets [0, 3, 4]`, `positions [40, 41, 42, 7]`, `exec_mask [True,
    True]`.

    slot_ids    [B] int32     batch line -> arena row; -1 pads the batch and touches nothing
    row_offsets [B + 1] int32 line b owns rows row_offsets[b]:row_offsets[b + 1]
    positions   [T] int64     row -> position in its own stream, consecutive inside a line
    exec_mask   [B] bool      False: the line's rows are computed by nobody and its state stays as
                              it was
    max_line_rows             most rows of a line, where the host knows it: kernels size their grids
                              by it without asking the device
    """

    slot_ids: Tensor
    row_offsets: Tensor
    positions: Tensor
    exec_mask: Tensor
    max_line_rows: int | None = None

    @classmethod
    def build(
        cls,
        slots: Sequence[int],
        counts: Sequence[int],
        starts: Sequence[int],
        *,
        exec_mask: Sequence[bool] | None = None,
        device: torch.device | str = "cpu",
    ) -> RowBatch:
        """Lines of `counts[b]` rows of `slots[b]` from position `starts[b]` on.

        Raises ValueError when the lists differ in length, a count or start is negative, or a slot
        comes twice.
        """
        if not len(slots) == len(counts) == len(starts):
            raise ValueError(
                f"slots, counts and starts must have one entry a line, got "
                f"{len(slots)}, {len(counts)} and {len(starts)}"
            )
        if any(c < 0 for c in counts) or any(s < 0 for s in starts):
            raise ValueError(f"counts and starts must not be negative, got {counts} and {starts}")
        used = [s for s in slots if s >= 0]
        if len(set(used)) != len(used):
            raise ValueError(f"a slot may own one line of a step, got slots {list(slots)}")
        offsets = [0]
        for count in counts:
            offsets.append(offsets[-1] + count)
        positions = [p for c, s in zip(counts, starts, strict=True) for p in range(s, s + c)]
        mask = [True] * len(slots) if exec_mask is None else list(exec_mask)
        return cls(
            torch.tensor(slots, dtype=torch.int32, device=device),
            torch.tensor(offsets, dtype=torch.int32, device=device),
            torch.tensor(positions, dtype=torch.int64, device=device),
            torch.tensor(mask, dtype=torch.bool, device=device),
            max(counts, default=0),
        )

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The lines that run (exec_mask true, slot not -1, not empty), read back to the host
        once.
        """
        offsets = self.row_offsets.tolist()
        positions = self.positions.tolist()
        return tuple(
            Line(slot, offsets[b], offsets[b + 1], positions[offsets[b]])
            for b, (slot, run) in enumerate(
                zip(self.slot_ids.tolist(), self.exec_mask.tolist(), strict=True)
            )
            if run and slot >= 0 and offsets[b + 1] > offsets[b]
        )

    @cached_property
    def run_rows(self) -> Tensor:
        """[R] int64: the rows of the lines that run, in order."""
        rows = [t for line in self.lines for t in range(line.start, line.stop)]
        return torch.tensor(rows, dtype=torch.int64, device=self.positions.device)

    @cached_property
    def all_run(self) -> bool:
        """Whether every row belongs to a line that runs."""
        return int(self.run_rows.shape[0]) == self.num_rows

    @cached_property
    def longest(self) -> int:
        """Rows of the longest of `lines`."""
        return max((line.stop - line.start for line in self.lines), default=0)

    @cached_property
    def run_slots(self) -> Tensor:
        """[R] int64: the slot of each row of `run_rows`."""
        slots = [line.slot for line in self.lines for _ in range(line.start, line.stop)]
        return torch.tensor(slots, dtype=torch.int64, device=self.positions.device)

    @cached_property
    def run_positions(self) -> Tensor:
        """[R] int64: the position of each row of `run_rows`."""
        return self.positions[self.run_rows]

    @cached_property
    def line_slots(self) -> Tensor:
        """[N] int64: the slot of each of `lines`."""
        slots = [line.slot for line in self.lines]
        return torch.tensor(slots, dtype=torch.int64, device=self.positions.device)

    @cached_property
    def fresh_lines(self) -> Tensor | None:
        """[N] bool: which of `lines` begin at position 0; None when none does."""
        fresh = [line.position == 0 for line in self.lines]
        if not any(fresh):
            return None
        return torch.tensor(fresh, dtype=torch.bool, device=self.positions.device)

    @cached_property
    def line_length(self) -> int | None:
        """Rows of every line when all run and bring equally many, so that [T, C] is also
        [N, line_length, C]; else None.
        """
        lengths = {line.stop - line.start for line in self.lines}
        if len(lengths) != 1:
            return None
        (length,) = lengths
        return length if length * len(self.lines) == self.num_rows else None

    @cached_property
    def equal_lines(self) -> tuple[Tensor, ...]:
        """For each length L among the lines that run: [n, L] int64, the rows of its n lines."""
        by_length: dict[int, list[range]] = {}
        for line in self.lines:
            by_length.setdefault(line.stop - line.start, []).append(range(line.start, line.stop))
        return tuple(
            torch.tensor([list(r) for r in ranges], dtype=torch.int64, device=self.positions.device)
            for ranges in by_length.values()
        )

    @cached_property
    def derived(self) -> dict[Hashable, Any]:
        """Index tensors that an op worked out from these rows alone, kept for the step's other
        layers; the key begins with the op's name.
        """
        return {}

    @cached_property
    def parities(self) -> dict[Hashable, tuple[Tensor, Tensor]]:
        """What `carry` read of `Twice` arenas for these lines, shared by all finer rates."""
        return {}

    @cached_property
    def num_rows(self) -> int:
        return int(self.positions.shape[0])

    @property
    def num_lines(self) -> int:
        return int(self.slot_ids.shape[0])

    @property
    def line_bound(self) -> int:
        """No line brings more rows than this; never waits for a device."""
        return self.num_rows if self.max_line_rows is None else self.max_line_rows

    @cached_property
    def on_host(self) -> bool:
        """Whether `lines` and what follows from it can be read without waiting for a device."""
        return self.positions.device.type == "cpu"

    def finer(self, ratio: int) -> RowBatch:
        """The same lines at `ratio` rows for each row here (a codec level of a higher rate)."""
        if ratio == 1:
            return self
        if ratio not in self._finer:
            if not self.on_host:
                coarse, up = self.origin
                self._finer[ratio] = _FinerRows(coarse, up * ratio)
                return self._finer[ratio]
            steps = torch.arange(ratio, device=self.positions.device)
            finer = RowBatch(
                self.slot_ids,
                self.row_offsets * ratio,
                (self.positions[:, None] * ratio + steps).reshape(-1),
                self.exec_mask,
                self.line_bound * ratio,
            )
            vars(finer).update(  # known already: spares the finer level its read-back
                lines=tuple(
                    Line(slot, start * ratio, stop * ratio, position * ratio)
                    for slot, start, stop, position in self.lines
                ),
                line_slots=self.line_slots,
                fresh_lines=self.fresh_lines,
                parities=self.parities,
            )
            self._finer[ratio] = finer
        return self._finer[ratio]

    @cached_property
    def _finer(self) -> dict[int, RowBatch]:
        return {}

    @property
    def origin(self) -> tuple[RowBatch, int]:
        """The rows this batch was made from by `finer`, and how many rows here stand for each of
        them: a kernel that multiplies by itself needs no launches for the finer tensors.
        """
        return self, 1


class _FinerRows(RowBatch):
    """`ratio` rows for each of `coarse`, on a device: tensors are computed only where asked for."""

    def __init__(self, coarse: RowBatch, ratio: int) -> None:
        vars(self).update(
            slot_ids=coarse.slot_ids,
            exec_mask=coarse.exec_mask,
            max_line_rows=coarse.line_bound * ratio,
            _origin=(coarse, ratio),
        )

    @property
    def origin(self) -> tuple[RowBatch, int]:
        origin: tuple[RowBatch, int] = vars(self)["_origin"]
        return origin

    @cached_property
    def row_offsets(self) -> Tensor:
        coarse, ratio = self.origin
        return coarse.row_offsets * ratio

    @cached_property
    def positions(self) -> Tensor:
        coarse, ratio = self.origin
        steps = torch.arange(ratio, device=coarse.positions.device)
        return (coarse.positions[:, None] * ratio + steps).reshape(-1)

    @cached_property
    def num_rows(self) -> int:
        coarse, ratio = self.origin
        return coarse.num_rows * ratio

    @cached_property
    def on_host(self) -> bool:
        return False
