"""grouped_experts in plain torch: a loop over the experts that were hit, in tiles of 8 rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.grouped_experts.layout import ExpertLayout
from microturn.kernels.router import Routing
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import TILE_ROWS, round_up


@dataclass(frozen=True)
class ExpertInputs:
    """x [T, H] and where its rows go."""

    x: Tensor
    routing: Routing


@dataclass(frozen=True)
class ExpertWeights:
    """Routed and shared experts of one layer; rows of w13 alternate gate, up, gate, up, ...

    w13 [E, 2 * I, H], w2 [E, H, I], shared_w13 [Sh, 2 * I, H], shared_w2 [Sh, H, I]
    """

    w13: Tensor
    w2: Tensor
    shared_w13: Tensor
    shared_w2: Tensor


class _Span(NamedTuple):
    """Tiles start:stop go through one expert."""

    w13: Tensor
    w2: Tensor
    start: int
    stop: int


class _Packed(NamedTuple):
    """tiles [N, 8, H] of x; spans over them; places [T * (A + Sh)]: the packed row of each
    choice.
    """

    tiles: Tensor
    spans: list[_Span]
    places: Tensor


def swiglu(h: Tensor) -> Tensor:
    """silu(gate) * up of interleaved columns: h [..., 2 * I] -> [..., I].

    A row's bits do not depend on the other rows when I is a multiple of 16 (and h comes in rows).
    """
    gate, up = h.unflatten(-1, (-1, 2)).unbind(-1)
    if h.requires_grad and torch.is_grad_enabled():
        return F.silu(gate) * up
    # silu rounds differently in the last, partial vector of a tensor: whole tiles have none.
    rows = h.numel() // h.shape[-1]
    if rows % TILE_ROWS == 0:
        return F.silu(gate.contiguous()).mul_(up)
    wide = h.new_zeros(round_up(rows, TILE_ROWS), gate.shape[-1])
    wide[:rows] = gate.reshape(rows, -1)
    return F.silu(wide)[:rows].view(gate.shape).mul_(up)


def _products(packed: _Packed) -> Tensor:
    """[N * 8, H]: every tile through its expert."""
    tiles, spans, _ = packed
    n = tiles.shape[0]
    h = tiles.new_empty(n, TILE_ROWS, spans[0].w13.shape[0])
    for w13, _, start, stop in spans:
        _tile_product(tiles, w13, h, start, stop)
    a = swiglu(h)
    y = tiles.new_empty(n, TILE_ROWS, spans[0].w2.shape[0])
    for _, w2, start, stop in spans:
        _tile_product(a, w2, y, start, stop)
    return y.view(n * TILE_ROWS, -1)


def _tile_product(x: Tensor, weight: Tensor, out: Tensor, start: int, stop: int) -> None:
    if stop - start == 1:
        torch.mm(x[start], weight.t(), out=out[start])
    else:
        batch = weight.t().expand(stop - start, -1, -1)
        torch.bmm(x[start:stop], batch, out=out[start:stop])


def _pack_one_tile(x: Tensor, topk_ids: Tensor, weights: ExpertWeights) -> _Packed:
    """Up to 8 rows: one tile that every expert hit reads; a row takes what it was routed to."""
    ids = topk_ids.tolist()
    shared = len(weights.shared_w13)
    hit = sorted({e for row in ids for e in row})
    tile_of = {e: n for n, e in enumerate(hit)}
    spans = [_Span(weights.w13[e], weights.w2[e], n, n + 1) for n, e in enumerate(hit)]
    for s in range(shared):
        n = len(spans)
        spans.append(_Span(weights.shared_w13[s], weights.shared_w2[s], n, n + 1))
    places = [
        n * TILE_ROWS + t
        for t, row in enumerate(ids)
        for n in (*(tile_of[e] for e in row), *range(len(hit), len(hit) + shared))
    ]
    tile = F.pad(x, (0, 0, 0, TILE_ROWS - x.shape[0]))
    return _Packed(tile.expand(len(spans), -1, -1), spans, torch.tensor(places))


def _pack(x: Tensor, topk_ids: Tensor, weights: ExpertWeights) -> _Packed:
    """Any number of rows: each expert's rows in tiles of their own, the shared experts' last."""
    t, a = topk_ids.shape
    experts, shared = len(weights.w13), len(weights.shared_w13)
    layout = ExpertLayout.build(topk_ids, experts)
    counts = layout.expert_offsets.diff()
    tiles = (counts + TILE_ROWS - 1) // TILE_ROWS
    stops = tiles.cumsum(0)
    # An expert's first packed row minus its first sorted place: what padding before it adds.
    shift = (stops - tiles) * TILE_ROWS - layout.expert_offsets[:-1]
    routed = layout.places.view(t, a) + shift[topk_ids.long()]
    ends = stops.tolist()
    all_tiles = -(-t // TILE_ROWS)
    spans = [
        _Span(weights.w13[e], weights.w2[e], start, stop)
        for e, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
        if stop > start
    ]
    for s in range(shared):
        start = ends[-1] + s * all_tiles
        spans.append(_Span(weights.shared_w13[s], weights.shared_w2[s], start, start + all_tiles))
    first = (ends[-1] + torch.arange(shared) * all_tiles) * TILE_ROWS
    places = torch.cat([routed, first + torch.arange(t)[:, None]], dim=1).view(-1)
    packed = x.new_zeros((ends[-1] + shared * all_tiles) * TILE_ROWS, x.shape[1])
    packed[places] = x.repeat_interleave(a + shared, dim=0)
    return _Packed(packed.view(-1, TILE_ROWS, x.shape[1]), spans, places)


def _choices_with_gradient(x: Tensor, topk_ids: Tensor, weights: ExpertWeights) -> Tensor:
    """[T, A + Sh, H]: what each expert says to each of its rows, unweighted, for autograd."""
    t, a = topk_ids.shape
    layout = ExpertLayout.build(topk_ids, len(weights.w13))
    runs = x.index_select(0, layout.rows).split(layout.expert_offsets.diff().tolist())
    y = torch.cat(
        [
            F.linear(swiglu(F.linear(run, weights.w13[e])), weights.w2[e])
            for e, run in enumerate(runs)
            if run.shape[0]
        ]
    )
    routed = y.index_select(0, layout.places).view(t, a, -1)
    shared = [
        F.linear(swiglu(F.linear(x, w13)), w2)[:, None]
        for w13, w2 in zip(weights.shared_w13, weights.shared_w2, strict=True)
    ]
    return torch.cat([routed, *shared], dim=1)


def _needs_gradient(inputs: ExpertInputs, weights: ExpertWeights) -> bool:
    return torch.is_grad_enabled() and any(
        tensor.requires_grad
        for tensor in (inputs.x, weights.w13, weights.w2, weights.shared_w13, weights.shared_w2)
    )


def core(inputs: ExpertInputs, weights: ExpertWeights) -> Tensor:
    """-> [T, H]; differentiable in x, the routing weights and the experts."""
    x, routing = inputs.x, inputs.routing
    t = x.shape[0]
    if t == 0:
        return torch.zeros_like(x)
    if _needs_gradient(inputs, weights):
        choices = _choices_with_gradient(x, routing.topk_ids, weights)
    else:
        pack = _pack_one_tile if t <= TILE_ROWS else _pack
        packed = pack(x, routing.topk_ids, weights)
        choices = _products(packed).index_select(0, packed.places).view(t, -1, x.shape[1])
    share = torch.cat([routing.topk_weights, routing.shared_weights], dim=1)
    first, *others = (choices.float() * share[:, :, None]).unbind(1)
    y = first
    for part in others:
        y = y + part
    return y.to(x.dtype)


def grouped_experts_reference(
    x: ExpertInputs,
    weights: ExpertWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `grouped_experts`."""
    if rows is None or rows.run_rows.shape[0] == rows.num_rows:
        y = core(x, weights)
    else:
        run, routing = rows.run_rows, x.routing
        some = Routing(
            routing.topk_ids[run], routing.topk_weights[run], routing.shared_weights[run]
        )
        y = torch.zeros_like(x.x).index_copy(0, run, core(ExpertInputs(x.x[run], some), weights))
    return y if out is None else out.copy_(y)
