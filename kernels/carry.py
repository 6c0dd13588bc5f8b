"""Lines of a packed step through an op that carries a tail from one call to the next.

The tail of a line (a convolution's last inputs, an overlap-add's unfinished outputs) lives in a
`Twice`. Lines that bring equally many rows run as one batch, others one after another: the bits are
the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.checks import check_rows
from microturn.kernels.kept import stamp
from microturn.kernels.rows import RowBatch


class CarryCore(Protocol):
    """x [N, L, C], carry [N, ...] as the last call left it or None, fresh [N] bool or None ->
    (y [N, L', C'], next carry).

    Where fresh is true, and everywhere when carry is None, the line opens its stream: carry is not
    read there.
    """

    def __call__(
        self, x: Tensor, *, carry: Tensor | None = None, fresh: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


def opened(carry: Tensor | None, fresh: Tensor | None, opening: Tensor) -> Tensor:
    """carry, with `opening` [N or 1, H or 1, C or 1] in the lines that open their stream."""
    if carry is None:
        return opening
    if fresh is None:
        return carry
    return torch.where(fresh[:, None, None], opening, carry)


def run_lines(
    core: CarryCore,
    x: Tensor,
    state: Twice | None,
    rows: RowBatch | None,
    *,
    up: int = 1,
    down: int = 1,
    width: int,
    out: Tensor | None = None,
) -> Tensor:
    """x [T, C] -> [T * up / down, width]: every line through `core`, its tail read once and written
    once.

    Rows of lines that do not run are zeros. Without rows, x is one line; without state, every line
    opens its stream and no tail is kept.
    """
    if rows is None:
        y = core(x[None])[0][0]
        return y if out is None else out.copy_(y)
    length = rows.line_length
    if length is not None:
        batch = x.reshape(-1, length, x.shape[1])
        parities = _parities(state, rows)
        y = _step(core, batch, state, rows.line_slots, rows.fresh_lines, parities)
        y = y.reshape(-1, width)
        return y if out is None else out.copy_(y)
    parts: list[Tensor] = []
    done = 0
    for i, line in enumerate(rows.lines):
        fresh = None if rows.fresh_lines is None else rows.fresh_lines[i : i + 1]
        slot = rows.line_slots[i : i + 1]
        parts.append(x.new_zeros((line.start - done) * up // down, width))
        parts.append(_step(core, x[None, line.start : line.stop], state, slot, fresh)[0])
        done = line.stop
    parts.append(x.new_zeros((rows.num_rows - done) * up // down, width))
    return torch.cat(parts, out=out) if out is not None else torch.cat(parts)


def _step(
    core: CarryCore,
    x: Tensor,
    state: Twice | None,
    slots: Tensor,
    fresh: Tensor | None,
    parities: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    if state is None:
        return core(x)[0]
    parity = state.parity[slots] if parities is None else parities[0]
    other = 1 - parity if parities is None else parities[1]
    data = state.data
    carry = data[parity, slots]
    y, tail = core(x, carry=carry if carry.dtype == x.dtype else carry.to(x.dtype), fresh=fresh)
    data.index_put_((other, slots), tail if tail.dtype == data.dtype else tail.to(data.dtype))
    return y


def _parities(state: Twice | None, rows: RowBatch) -> tuple[Tensor, Tensor] | None:
    """Of the lines' slots: which copy is committed and which is written, read once for all the
    tails of a tick. Rows belong to one tick, and no parity flips within it.
    """
    if state is None:
        return None
    parity = state.parity
    key = stamp(parity)
    if key not in rows.parities:
        committed = parity[rows.line_slots]
        rows.parities[key] = committed, 1 - committed
    return rows.parities[key]


def check_carry(
    op: str,
    x: Tensor,
    state: Twice | None,
    rows: RowBatch | None,
    tail: tuple[int, int] | None,
    *,
    multiple: int = 1,
) -> None:
    """Raises ValueError when rows do not describe x, a line's rows are no multiple of `multiple`,
    or the state is not a `Twice` of `tail` a slot (tail None: nothing is carried, state must be
    None).
    """
    if rows is None:
        if state is not None:
            raise ValueError(f"{op}: state needs rows, to say which slots the input belongs to")
        counts = [int(x.shape[0])]
    else:
        check_rows(op, rows, int(x.shape[0]))
        counts = []
        if rows.on_host:
            length = rows.line_length
            counts = [length] if length else [line.stop - line.start for line in rows.lines]
    for count in counts:
        if count % multiple:
            raise ValueError(f"{op}: a line must bring a multiple of {multiple} rows, got {count}")
    if state is None:
        return
    if tail is None:
        raise ValueError(f"{op}: this shape carries nothing from call to call; pass no state")
    got = tuple(state.data.shape[2:])
    if got != tail:
        raise ValueError(f"{op}: state must hold {list(tail)} a slot, got {list(got)}")


class LineArguments(NamedTuple):
    """What the kernels of ops with a tail are told about lines, in their order.

    tensors   state, parity, row_offsets, slot_ids, exec_mask as bytes, positions
    strides   of state, between its copies and between its slots
    numbers   B and halvings: see `device.lines`
    constants UP: rows here for each row of the caller (`RowBatch.origin`); HAS_STATE
    """

    tensors: tuple[Tensor, ...]
    strides: tuple[int, int]
    numbers: tuple[int, int]
    constants: dict[str, Any]
    num_lines: int


def line_arguments(x: Tensor, state: Twice | None, rows: RowBatch | None) -> LineArguments:
    """For a kernel over x [T, C] at the rate of `rows`; without rows x is one line."""
    if rows is None:
        rows = RowBatch.build([0], [int(x.shape[0])], [0], device=x.device)
    origin, up = rows.origin
    lines = origin.num_lines
    return LineArguments(
        (
            x if state is None else state.data,
            origin.positions if state is None else state.parity,
            origin.row_offsets,
            origin.slot_ids,
            origin.exec_mask.view(torch.uint8),
            origin.positions,
        ),
        (0, 0) if state is None else (state.data.stride(0), state.data.stride(1)),
        (lines, lines.bit_length()),
        {"UP": up, "HAS_STATE": state is not None},
        lines,
    )


def check_tail_dtype(op: str, x: Tensor, state: Twice | None) -> None:
    """Raises TypeError when kept inputs are of another dtype than those that come: a kernel reads
    both through one pointer.
    """
    if state is not None and state.data.dtype != x.dtype:
        raise TypeError(
            f"{op}: state must be {x.dtype} as x is, got {state.data.dtype}; allocate the arena so"
        )
