"""short_conv in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import ArenaSpec, Ring, ring_capacity
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.whole import convolve_whole


def short_conv_spec(
    name: str, channels: int, kernel_size: int, max_rows_per_tick: int, cursor: str
) -> ArenaSpec:
    """The ring of raw inputs that a short convolution of `channels` reads."""
    capacity = ring_capacity(kernel_size - 1, max_rows_per_tick, multiple=8)
    return ArenaSpec(name, "ring", (channels,), capacity, cursor)


class _Taps(NamedTuple):
    """Where the R running rows of a batch find their K taps in a ring seen as [S * capacity, C].

    write  [R] int64: the place of each row itself
    read   [R, K] int64: the places of its taps, oldest first
    absent [R, K, 1] bool: taps before position 0; None when there are none
    """

    write: Tensor
    read: Tensor
    absent: Tensor | None


def _taps(rows: RowBatch, capacity: int, kernel_size: int) -> _Taps:
    key = ("short_conv", capacity, kernel_size)
    taps: _Taps | None = rows.derived.get(key)
    if taps is None:
        steps = torch.arange(1 - kernel_size, 1, device=rows.positions.device)
        positions = rows.run_positions[:, None] + steps
        places = rows.run_slots[:, None] * capacity + positions % capacity
        absent = positions < 0
        taps = _Taps(
            places[:, -1].clone(),
            places,
            absent[..., None] if bool(absent.any()) else None,
        )
        rows.derived[key] = taps
    return taps


def core(x: Tensor, weights: Tensor) -> Tensor:
    """x [..., T, C] from position 0 on, weights [C, K] -> [..., T, C], dtype of x."""
    length, kernel_size = x.shape[-2], weights.shape[1]
    wide = x.float()
    padded = F.pad(wide, (0, 0, kernel_size - 1, 0))
    w = weights.float()
    total = padded[..., :length, :] * w[:, 0]
    for m in range(1, kernel_size):
        total = total + padded[..., m : m + length, :] * w[:, m]
    return (wide + total).to(x.dtype)


def _streamed(x: Tensor, weights: Tensor, state: Ring, rows: RowBatch) -> Tensor:
    """x [R, C], the running rows -> [R, C]. Same products, same order of sums as `core`."""
    at = _taps(rows, state.capacity, weights.shape[1])
    flat = state.flat
    flat.index_copy_(0, at.write, x if x.dtype == flat.dtype else x.to(flat.dtype))
    taps = torch.embedding(flat, at.read)
    if taps.dtype != torch.float32:
        taps = taps.float()
    if at.absent is not None:
        taps.masked_fill_(at.absent, 0.0)
    # Fewer than 16 are summed one after the other.
    total = taps.mul_(weights.t()).sum(1)
    return total.add_(x).to(x.dtype) if x.dtype != torch.float32 else total.add_(x)


def _running(x: Tensor, weights: Tensor, state: Ring, rows: RowBatch) -> Tensor:
    """x [T, C] -> [T, C], zeros in rows that do not run."""
    if rows.all_run:
        return _streamed(x, weights, state, rows)
    run = rows.run_rows
    streamed = _streamed(x.index_select(0, run), weights, state, rows)
    return torch.zeros_like(x).index_copy_(0, run, streamed)


def short_conv_reference(
    x: Tensor,
    weights: Tensor,
    state: Ring | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `short_conv`."""
    if state is not None:
        if torch.is_grad_enabled():
            with torch.no_grad():
                y = _running(x, weights, state, rows)
        else:
            y = _running(x, weights, state, rows)
    elif rows.all_run:
        y = convolve_whole(x, weights, rows)
    else:
        y = torch.zeros_like(x)
        for index in rows.equal_lines:
            flat = index.reshape(-1)
            line = x.index_select(0, flat).view(*index.shape, -1)
            y = y.index_copy(0, flat, core(line, weights).flatten(0, 1))
    return y if out is None else out.copy_(y)
