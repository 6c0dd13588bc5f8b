"""Keys and values as attention libraries keep them, from our arenas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from microturn.bench.check import expected as computed
from microturn.bench.providers.base import Unavailable
from microturn.kernels.registry import OpInputs
from microturn.kernels.streaming_attention.reference import (
    AttentionInputs,
    log_scale,
    streaming_attention_reference,
)

OP = "streaming_attention"
BIAS = "the relative bias"


@dataclass(frozen=True)
class Kept:
    """B lines of n rows each. Key 0 of a line is at its position `first`.

    q        [B, n, H, D], times the log scale where there is one
    new      k and v of the rows, [B, n, Hkv, D] each, to be appended; None: they are kept already
    k, v     [B, L, Hkv, D], zeros past the keys
    past     [B] int32: keys kept before the call; total: after it
    first    [B] int64; window: keys a query sees; sliding: whether some of these are hidden by it
    """

    q: Tensor
    new: tuple[Tensor, Tensor] | None
    k: Tensor
    v: Tensor
    past: Tensor
    total: Tensor
    first: Tensor
    window: int
    scale: float
    sliding: bool
    rope_theta: float | None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """B, n, H, Hkv, D."""
        b, n, h, d = self.q.shape
        return b, n, h, int(self.k.shape[2]), d

    def positions(self) -> Tensor:
        """[B, n] int64: place of each row among its line's keys."""
        rows = torch.arange(self.q.shape[1], device=self.q.device)
        return (self.total - self.q.shape[1])[:, None].long() + rows

    def hidden(self) -> Tensor:
        """[B, n, L] bool: keys that a row must not see."""
        distance = self.distances()
        return (distance < 0) | (distance >= self.window)

    def distances(self) -> Tensor:
        """[B, n, L]: how far back a key is; negative after the row."""
        keys = torch.arange(self.k.shape[1], device=self.q.device)
        return self.positions()[..., None] - keys

    def output(self, y: Tensor) -> Tensor:
        """[B, n, H, D] -> [T, H, D]."""
        return y.reshape(-1, *y.shape[2:])

    def pages(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """(k, v [pages, size, Hkv, D], table [B, pages of a line] int32), in no order."""
        lines, length = self.k.shape[:2]
        each = -(-length // size)
        order = torch.randperm(lines * each, generator=torch.Generator().manual_seed(0))
        order = order.to(self.k.device)

        def cut(kept: Tensor) -> Tensor:
            whole = kept.new_zeros(lines, each * size, *kept.shape[2:])
            whole[:, :length] = kept
            out = torch.empty_like(whole).view(lines * each, size, *kept.shape[2:])
            out[order] = whole.view(lines * each, size, *kept.shape[2:])
            return out

        return cut(self.k), cut(self.v), order.view(lines, each).int()


def kept(inputs: OpInputs, *, scaled_queries: bool = True) -> Kept:
    """Raises Unavailable where lines differ in length, there are sinks, or there are no arenas.

    scaled_queries: queries times the log scale; else the caller scales logits
    """
    x, weights, state, rows = inputs
    n = rows.line_length
    if n is None or state is None:
        raise Unavailable("its calls take a batch of lines with equally many rows, over kept keys")
    if weights.num_sink_tokens:
        raise Unavailable("it has no sinks: keys that stay visible behind the window")
    device, lines = x.q.device, rows.lines
    q = x.q
    tau = log_scale(rows.positions, weights) if scaled_queries else None
    if tau is not None:
        q = (q.float() * tau[:, None, None]).to(q.dtype)
    start = torch.tensor([line.position for line in lines], device=device)
    first = (start - weights.window + 1).clamp_min(0)
    appends = x.k is not None
    total = start + n - first
    past = total - n if appends else total
    longest = int(total.max())
    keys = torch.arange(longest, device=device)
    there = keys < past[:, None]
    places = torch.where(there, first[:, None] + keys, start[:, None] - (1 if appends else 0))
    places = places.clamp_min(0)
    slots = rows.line_slots[:, None].expand_as(places)

    def read(arena: Any) -> Tensor:
        found: Tensor = arena.read(slots, places)
        if found.dtype.itemsize == 1:
            found = found.view(torch.uint8).masked_fill(~there[..., None, None], 0)
            return found.view(arena.data.dtype)
        return found.masked_fill(~there[..., None, None], 0)

    def by_line(rows_of: Tensor) -> Tensor:
        return rows_of.reshape(len(lines), n, *rows_of.shape[1:]).contiguous()

    return Kept(
        q=by_line(q),
        new=(by_line(x.k), by_line(x.v)) if appends else None,
        k=read(state.k).contiguous(),
        v=read(state.v).contiguous(),
        past=past.int(),
        total=total.int(),
        first=first,
        window=weights.window,
        scale=weights.scale,
        sliding=bool((total > weights.window).any()),
        rope_theta=weights.rope_theta,
    )


def without_bias(inputs: OpInputs) -> tuple[Any, str] | None:
    """What a call without the relative bias should return; None where there is no bias."""
    x, weights, state, rows = inputs
    if x.r is None:
        return None
    plain = OpInputs(
        AttentionInputs(x.q, x.k, x.v, None), replace(weights, rel_bank=None), state, rows
    )
    return computed(streaming_attention_reference, plain, x.q.device, state=False).result, BIAS


def rope_tables(kept: Kept) -> tuple[Tensor, Tensor]:
    """cos and sin [L, D / 2] by place among the keys. Raises Unavailable where lines begin at
    different positions.
    """
    assert kept.rope_theta is not None
    firsts = set(kept.first.tolist())
    if len(firsts) > 1:
        raise Unavailable("its rotary tables are shared by lines, which begin at other positions")
    d = kept.q.shape[-1]
    steps = torch.arange(0, d, 2, dtype=torch.float64, device=kept.q.device)
    places = torch.arange(int(kept.total.max()), device=kept.q.device) + firsts.pop()
    angles = places[:, None] * kept.rope_theta ** (-steps / d)
    return angles.cos().to(kept.q.dtype), angles.sin().to(kept.q.dtype)
