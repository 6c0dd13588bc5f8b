"""grouped_experts in plain torch: a loop over the experts that were hit, in tiles of 8 rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.grouped_experts.layout import ExpertLayout
from microturn.kernels.quantized import Weight, plain
from microturn.kernels.router import Routing
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import TILE_ROWS, round_up, tile_product, whole_tiles


@dataclass(frozen=True)
class ExpertInputs:
    """x [T, H] and where its rows go."""

    x: Tensor
    routing: Routing


@dataclass(frozen=True)
class ExpertWeights:
    """Routed and shared experts of one layer; rows of w13 alternate gate, up, gate, up, ...

    w13 [E, 2 * I, H], w2 [E, H, I], shared_w13 [Sh, 2 * I, H], shared_w2 [Sh, H, I]: of one dtype,
    or Quantized; views whose last axis is dense. E = 0 makes a dense MLP of the shared experts.
    """

    w13: Weight
    w2: Weight
    shared_w13: Weight
    shared_w2: Weight

    def made_of(self, w13: Weight, w2: Weight, shared_w13: Weight, shared_w2: Weight) -> bool:
        """Whether it holds these very tensors."""
        return (
            self.w13 is w13
            and self.w2 is w2
            and self.shared_w13 is shared_w13
            and self.shared_w2 is shared_w2
        )


def _matrices(
    weights: ExpertWeights, hit: list[int], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """w13 and w2 of the experts hit, then of the shared ones. Views of weights that are of `dtype`
    already are kept while their memory stays.
    """
    w13, w2, shared_w13, shared_w2 = weights.w13, weights.w2, weights.shared_w13, weights.shared_w2
    routed, shared = w13.shape[0], shared_w13.shape[0]
    wanted = (*hit, *range(routed, routed + shared))

    def pair(e: int) -> tuple[Tensor, Tensor]:
        if e < routed:
            return plain(w13[e], dtype), plain(w2[e], dtype)
        return plain(shared_w13[e - routed], dtype), plain(shared_w2[e - routed], dtype)

    of = [w for w in (w13, w2, shared_w13, shared_w2) if isinstance(w, Tensor) and w.dtype == dtype]
    if len(of) < 4:  # converted: copies, which do not follow what the weights become
        return [pair(e) for e in wanted]
    where = tuple(w.data_ptr() for w in of)
    kept = vars(weights).get("_views")
    if kept is None or kept[0] != where:
        kept = vars(weights)["_views"] = where, {}
    views: dict[int, tuple[Tensor, Tensor]] = kept[1]
    for e in wanted:
        if e not in views:
            views[e] = pair(e)
    return [views[e] for e in wanted]


class _Packed(NamedTuple):
    """Rows of x in whole tiles, a chunk for each expert that was hit.

    chunks  [8 * m, H] each, with the w13 and w2 they go through
    places  [T * (A + Sh)] int64: the row, in all chunks end to end, of each choice
    """

    chunks: Sequence[Tensor]
    w13: Sequence[Tensor]
    w2: Sequence[Tensor]
    places: Tensor


def swiglu(h: Tensor) -> Tensor:
    """silu(gate) * up of interleaved columns: h [..., 2 * I] -> [..., I].

    A row's bits do not depend on the other rows when I is a multiple of 16.
    """
    gate, up = h.view(*h.shape[:-1], h.shape[-1] // 2, 2).unbind(-1)
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
    """All chunks through their experts, end to end: [N * 8, H]."""
    each = zip(packed.chunks, packed.w13, strict=True)
    a = swiglu(torch.cat([tile_product(x, w13) for x, w13 in each]))
    halves = zip(a.split_with_sizes([x.shape[0] for x in packed.chunks]), packed.w2, strict=True)
    return torch.cat([tile_product(x, w2) for x, w2 in halves])


def _choices_of_a_tile(x: Tensor, topk_ids: Tensor, weights: ExpertWeights) -> Tensor:
    """[T, A + Sh, H] for up to 8 rows: one tile that every expert hit reads; a row takes what it
    was routed to.
    """
    (t, a), shared = topk_ids.shape, weights.shared_w13.shape[0]
    ids: list[list[int]] = topk_ids.tolist()
    # A lone row takes them in its own order, so that nothing is left to sort.
    hit = ids[0] if t == 1 else sorted({e for row in ids for e in row})
    experts = _matrices(weights, hit, x.dtype)
    tile = whole_tiles(x)
    h = [F.linear(tile, w13) for w13, _ in experts]
    up = swiglu(torch.cat(h) if len(h) > 1 else h[0]).view(len(h), TILE_ROWS, -1)
    y = [F.linear(part, w2) for part, (_, w2) in zip(up.unbind(0), experts, strict=True)]
    made = torch.cat(y) if len(y) > 1 else y[0]
    if t == 1:
        return made.view(1, len(y), TILE_ROWS, -1).select(2, 0)
    chunk_of = {e: n for n, e in enumerate(hit)}
    last = range(len(hit), len(hit) + shared)
    places = [
        n * TILE_ROWS + row
        for row, chosen in enumerate(ids)
        for n in (*(chunk_of[e] for e in chosen), *last)
    ]
    return made.index_select(0, torch.tensor(places)).view(t, a + shared, -1)


def _pack(x: Tensor, topk_ids: Tensor, weights: ExpertWeights) -> _Packed:
    """Any number of rows: each expert's rows in tiles of their own, the shared experts' last."""
    t, a = topk_ids.shape
    shared = weights.shared_w13.shape[0]
    layout = ExpertLayout.build(topk_ids, weights.w13.shape[0])
    counts = layout.expert_offsets.diff()
    padded = (counts + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    # What padding before an expert adds to the places of its rows.
    shift = padded.cumsum(0) - padded - layout.expert_offsets[:-1]
    sizes = padded.tolist()
    hit = [e for e, size in enumerate(sizes) if size]
    all_rows = round_up(t, TILE_ROWS)
    sizes = [sizes[e] for e in hit] + [all_rows] * shared

    routed = layout.places.view(t, a) + shift[topk_ids.long()]
    first = sum(sizes) - (shared - torch.arange(shared)) * all_rows
    places = torch.cat([routed, first + torch.arange(t)[:, None]], dim=1).view(-1)
    packed = x.new_zeros(sum(sizes), x.shape[1])
    packed[places] = x.repeat_interleave(a + shared, dim=0)
    w13, w2 = zip(*_matrices(weights, hit, x.dtype), strict=True)
    return _Packed(packed.split_with_sizes(sizes), w13, w2, places)


def _choices_with_gradient(x: Tensor, topk_ids: Tensor, weights: ExpertWeights) -> Tensor:
    """[T, A + Sh, H]: what each expert says to each of its rows, unweighted, for autograd."""
    t, a = topk_ids.shape

    def through(run: Tensor, w13: Weight, w2: Weight) -> Tensor:
        return F.linear(swiglu(F.linear(run, plain(w13, x.dtype))), plain(w2, x.dtype))

    choices = [
        through(x, weights.shared_w13[s], weights.shared_w2[s])[:, None]
        for s in range(weights.shared_w13.shape[0])
    ]
    if a:
        layout = ExpertLayout.build(topk_ids, weights.w13.shape[0])
        counts = layout.expert_offsets.diff().tolist()
        runs = x.index_select(0, layout.rows).split_with_sizes(counts)
        y = torch.cat(
            [
                through(run, weights.w13[e], weights.w2[e])
                for e, run in enumerate(runs)
                if run.shape[0]
            ]
        )
        choices.insert(0, y.index_select(0, layout.places).view(t, a, -1))
    return torch.cat(choices, dim=1)


def _needs_gradient(inputs: ExpertInputs, weights: ExpertWeights) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(tensor, Tensor) and tensor.requires_grad
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
    elif t <= TILE_ROWS:
        choices = _choices_of_a_tile(x, routing.topk_ids, weights)
    else:
        packed = _pack(x, routing.topk_ids, weights)
        choices = _products(packed).index_select(0, packed.places).view(t, -1, x.shape[1])
    share = torch.cat((routing.topk_weights, routing.shared_weights), dim=1)
    if choices.dtype != torch.float32:
        choices = choices.float()
    # Fewer than 16 are summed one after the other.
    y = (choices * share.unsqueeze(-1)).sum(1)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def grouped_experts_reference(
    x: ExpertInputs,
    weights: ExpertWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `grouped_experts`."""
    if rows is None or rows.all_run:
        y = core(x, weights)
    else:
        run, routing = rows.run_rows, x.routing
        some = Routing(
            routing.topk_ids[run], routing.topk_weights[run], routing.shared_weights[run]
        )
        y = torch.zeros_like(x.x).index_copy(0, run, core(ExpertInputs(x.x[run], some), weights))
    return y if out is None else out.copy_(y)
