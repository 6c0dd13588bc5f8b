"""Masked attention over whole sequences, a block of queries at a time, with a backward of its own.

Only logits of keys that a block may see are formed, and none is kept: the backward forms them
again. Time and memory grow with T * window, not with T * T.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Queries at a time: on a CPU their logits over a window of 512 stay in the cache."""


class Visible(NamedTuple):
    """window keys up to itself that a query sees, and the first num_sinks of a sequence."""

    window: int
    num_sinks: int


class _Block(NamedTuple):
    """Queries start:stop over keys low:stop; columns of `_Biases` that they meet."""

    start: int
    stop: int
    low: int
    columns: slice

    @property
    def size(self) -> int:
        return self.stop - self.start


class _Biases(NamedTuple):
    """What a logit gets by its distance, farthest first: -inf from the window on, zero or the
    bank's, -inf for keys after the query.

    hidden [M], 0 or -inf; bank [d_rel, M], zeros where there is no bias, or None
    """

    hidden: Tensor
    bank: Tensor | None


def _blocks(length: int, visible: Visible, width: int) -> list[_Block]:
    """A row of a block is read one column later than the row above (`_by_key`), so its biases are
    as many columns as it has keys and queries, less one.
    """
    made = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        low = 0 if visible.num_sinks else max(0, start - visible.window + 1)
        first = width - (stop - low) - (BLOCK - 1)
        made.append(_Block(start, stop, low, slice(first, first + 2 * stop - start - low - 1)))
    return made


def _width(length: int, visible: Visible) -> int:
    """Of `_Biases`: the distances of the widest block, those after the query included."""
    keys = length if visible.num_sinks else min(length, visible.window + BLOCK - 1)
    return keys + BLOCK - 1


def _biases(like: Tensor, bank: Tensor | None, visible: Visible, width: int) -> _Biases:
    nearest = width - BLOCK  # the column of distance 0
    distance = nearest - torch.arange(width, device=like.device)
    hidden = like.new_zeros(width)
    hidden.masked_fill_((distance < 0) | (distance >= visible.window), float("-inf"))
    if bank is None:
        return _Biases(hidden, None)
    known = min(bank.shape[1], nearest + 1)
    padding = (nearest + 1 - known, BLOCK - 1)
    return _Biases(hidden, F.pad(bank[:, :known].flip(1), padding))


def _by_key(biases: Tensor, block: _Block) -> Tensor:
    """biases [..., size, columns], contiguous -> a view [..., size, keys]: row i from column
    size - 1 - i on.
    """
    lead, (rows, columns) = biases.shape[:-2], biases.shape[-2:]
    strides = [*biases.stride()[:-2], columns - 1, 1]
    return biases.as_strided((*lead, rows, block.stop - block.low), strides, block.size - 1)


class _Sequences(NamedTuple):
    """Some sequences of the batch: q, r [n, T, H, ...], k, v [n * Hkv, T, D]."""

    q: Tensor
    k: Tensor
    v: Tensor
    r: Tensor | None

    def queries(self, block: _Block) -> Tensor:
        """[n * Hkv, heads a kv head * size, D]."""
        return _by_head(self.q, block).reshape(self.k.shape[0], -1, self.q.shape[-1])

    def relatives(self, block: _Block) -> Tensor:
        """[n * H * size, d_rel]."""
        assert self.r is not None
        return _by_head(self.r, block).reshape(-1, self.r.shape[-1])


def _by_head(x: Tensor, block: _Block) -> Tensor:
    """x [n, T, H, D] -> [n, H, size, D], a view."""
    return x[:, block.start : block.stop].transpose(1, 2)


def _shares(
    x: _Sequences, queries: Tensor, block: _Block, biases: _Biases, visible: Visible
) -> Tensor:
    """queries of the block -> softmax of its logits [n * Hkv, heads a kv head * size, keys]."""
    logits = torch.bmm(queries, x.k[:, block.low : block.stop].transpose(1, 2))
    by_row = logits.view(-1, block.size, logits.shape[-1])
    hidden = biases.hidden[block.columns]
    if biases.bank is None:
        by_distance = hidden.repeat(1, block.size, 1)
    else:
        by_distance = torch.addmm(hidden, x.relatives(block), biases.bank[:, block.columns])
        by_distance = by_distance.view(-1, block.size, by_distance.shape[-1])
    by_key = _by_key(by_distance, block)
    if visible.num_sinks:
        query = torch.arange(block.start, block.stop, device=logits.device)[:, None]
        key = torch.arange(min(visible.num_sinks, block.stop), device=logits.device)
        by_key[..., : len(key)].masked_fill_(query - key >= visible.window, 0.0)
    by_row += by_key
    return logits.softmax(-1)


class _Attention(torch.autograd.Function):
    """See `attend`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, r: Tensor | None, bank: Tensor | None, *sees: int
    ) -> Tensor:
        ctx.visible = visible = Visible(*sees)
        ctx.save_for_backward(q, k, v, r, bank)
        width = _width(q.shape[1], visible)
        biases = _biases(q, bank, visible, width)
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
        for here, x in _each(q, k, v, r):
            for block in _blocks(q.shape[1], visible, width):
                shares = _shares(x, x.queries(block), block, biases, visible)
                mixed = torch.bmm(shares, x.v[:, block.low : block.stop])
                into = _by_head(y[here], block)
                into.copy_(mixed.view(into.shape))
        ctx.y = y
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        q, k, v, r, bank = ctx.saved_tensors
        visible = ctx.visible
        width = _width(q.shape[1], visible)
        biases = _biases(q, bank, visible, width)
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dr = None if r is None else torch.empty_like(r, memory_format=torch.contiguous_format)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        d_biases = None if biases.bank is None else torch.zeros_like(biases.bank)
        along = (grad * ctx.y).sum(-1, keepdim=True)
        for here, x in _each(q, k, v, r):
            dk_here, dv_here = x.k.new_zeros(x.k.shape), x.v.new_zeros(x.v.shape)
            for block in _blocks(q.shape[1], visible, width):
                keys = slice(block.low, block.stop)
                queries = x.queries(block)
                shares = _shares(x, queries, block, biases, visible)
                dy = _by_head(grad[here], block).reshape(queries.shape)
                dv_here[:, keys].baddbmm_(shares.transpose(1, 2), dy)
                d_logits = torch.bmm(dy, x.v[:, keys].transpose(1, 2))
                d_logits -= _by_head(along[here], block).reshape(*queries.shape[:2], 1)
                d_logits *= shares
                into = _by_head(dq[here], block)
                into.copy_(torch.bmm(d_logits, x.k[:, keys]).view(into.shape))
                dk_here[:, keys].baddbmm_(d_logits.transpose(1, 2), queries)
                if biases.bank is not None:
                    assert dr is not None and d_biases is not None
                    columns = biases.bank[:, block.columns]
                    rows = d_logits.view(-1, block.size, d_logits.shape[-1])
                    by_distance = rows.new_zeros(*rows.shape[:2], columns.shape[1])
                    _by_key(by_distance, block).copy_(rows)
                    flat = by_distance.flatten(0, 1)
                    into = _by_head(dr[here], block)
                    into.copy_((flat @ columns.T).view(into.shape))
                    d_biases[:, block.columns].addmm_(x.relatives(block).T, flat)
            for whole, part in ((dk, dk_here), (dv, dv_here)):
                whole[here].copy_(part.view(-1, k.shape[2], *part.shape[1:]).transpose(1, 2))
        d_bank = None
        if d_biases is not None:
            nearest = width - BLOCK
            known = min(bank.shape[1], nearest + 1)
            d_known = d_biases[:, nearest + 1 - known : nearest + 1].flip(1)
            d_bank = F.pad(d_known, (0, bank.shape[1] - known))
        return dq, dk, dv, dr, d_bank, None, None


def _each(q: Tensor, k: Tensor, v: Tensor, r: Tensor | None) -> list[tuple[slice, _Sequences]]:
    """One sequence after the other on a CPU, whose cache holds no more; elsewhere all at once."""
    count = q.shape[0]
    step = 1 if q.device.type == "cpu" else max(count, 1)
    made = []
    for first in range(0, count, step):
        here = slice(first, first + step)
        keys, values = (x[here].transpose(1, 2).flatten(0, 1).contiguous() for x in (k, v))
        made.append((here, _Sequences(q[here], keys, values, None if r is None else r[here])))
    return made


def attend(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor | None, bank: Tensor | None, visible: Visible
) -> Tensor:
    """Softmax attention, differentiable once. q [N, T, H, D], scaled; k, v [N, T, Hkv, D];
    r [N, T, H, d_rel] and bank [d_rel, extent], or None: r . bank[:, d] is added to the logit of
    the key d positions back. All of one dtype -> [N, T, H, D].
    """
    return _Attention.apply(q, k, v, r, bank, *visible)  # type: ignore[no-any-return,no-untyped-call]
