"""streaming_attention in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import LEAF, ArenaKind, ArenaSpec, Pages, Ring, ring_capacity
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention.layout import (
    AttentionPart,
    Integers,
    Leaves,
    build_parts,
    on_device,
)
from microturn.kernels.streaming_attention.merge import NOTHING, merge
from microturn.kernels.streaming_attention.rope import apply_rope, rotate, rotation, wide
from microturn.kernels.streaming_attention.whole import Visible, attend
from microturn.kernels.tiles import TILE_ROWS, WIDTH, round_up


@dataclass(frozen=True)
class AttentionInputs:
    """What the rows bring, packed.

    q [T, H, D], k and v [T, Hkv, D] with H a multiple of Hkv, r [T, H, d_rel] where there is a
    relative bias. k and v both None: the arenas already hold those of the rows (turned, where there
    is rope), written by the op before; q is turned here all the same.
    """

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    r: Tensor | None = None


@dataclass(frozen=True)
class AttentionWeights:
    """The bank of the relative bias and the static numbers of one attention layer.

    window     keys a query sees, itself included
    num_sink_tokens  first keys of a stream that stay visible behind the window
    scale      factor of q . k
    rel_bank   [d_rel, extent]: column d is for keys d positions back
    log_floor  visible keys up to which tau is 1; None: tau is always 1
    log_alpha  slope of tau
    rope_theta base of the rotary embedding; None: none
    """

    window: int
    scale: float
    rel_bank: Tensor | None = None
    log_floor: int | None = None
    log_alpha: float = 0.0
    rope_theta: float | None = None
    num_sink_tokens: int = 0


@dataclass(frozen=True)
class KVState:
    """Keys (turned, where there is rope) and values of past positions, [..., Hkv, D] each."""

    k: Ring | Pages
    v: Ring | Pages


def kv_specs(
    prefix: str,
    *,
    kind: ArenaKind,
    window: int,
    max_rows_per_tick: int,
    num_kv_heads: int,
    head_dim: int,
    cursor: str,
    dtype: torch.dtype = torch.float32,
    num_sink_tokens: int = 0,
) -> tuple[ArenaSpec, ArenaSpec]:
    """The arenas `{prefix}.k` and `{prefix}.v`; kind is "ring" or "pages" (of one leaf each).
    Sinks are kept in whole leaves beside the window.

    Raises ValueError on another kind.
    """
    if kind not in ("ring", "pages"):
        raise ValueError(f"keys and values live in a 'ring' or in 'pages', got {kind!r}")
    pinned = round_up(num_sink_tokens, LEAF)
    capacity = pinned + ring_capacity(window, max_rows_per_tick)
    shape = (num_kv_heads, head_dim)
    k, v = (
        ArenaSpec(f"{prefix}.{part}", kind, shape, capacity, cursor, dtype, pinned=pinned)
        for part in ("k", "v")
    )
    return k, v


def log_scale(positions: Tensor, weights: AttentionWeights) -> Tensor | None:
    """tau = 1 + alpha * ln(max(1, visible keys / floor)) by position, fp32; None where it is 1."""
    most = weights.window + weights.num_sink_tokens
    if weights.log_floor is None or most <= weights.log_floor:
        return None
    visible = (positions + 1).clamp_max(most).double()
    return (1 + weights.log_alpha * (visible / weights.log_floor).clamp_min(1).log()).float()


def _extent(weights: AttentionWeights) -> int:
    """Distances that have a bias: none is behind the window."""
    return 0 if weights.rel_bank is None else min(weights.rel_bank.shape[1], weights.window)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.float()


def core(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor | None,
    weights: AttentionWeights,
    positions: Tensor | None = None,
) -> Tensor:
    """Masked softmax attention over whole sequences, differentiable.

    q [..., T, H, D], k and v [..., T, Hkv, D], r [..., T, H, d_rel] or None, positions [..., T]
    int64 (from 0 on when None) -> [..., T, H, D], dtype of q.
    """
    if positions is None:
        positions = torch.arange(q.shape[-3], device=q.device)
    if weights.rope_theta is not None:
        q = apply_rope(q, positions, weights.rope_theta)
        k = apply_rope(k, positions, weights.rope_theta)
    queries, relatives, bank = _wide(q) * weights.scale, None, None
    if r is not None and weights.rel_bank is not None:
        relatives, bank = _wide(r), _wide(weights.rel_bank)[:, : _extent(weights)]
    tau = log_scale(positions, weights)
    if tau is not None:
        by_row = tau[..., None, None].to(queries.dtype)
        queries = queries * by_row
        relatives = None if relatives is None else relatives * by_row
    y = attend(
        _flat(queries),
        _flat(_wide(k)),
        _flat(_wide(v)),
        None if relatives is None else _flat(relatives),
        bank,
        Visible(weights.window, weights.num_sink_tokens),
    )
    return y.view(q.shape).to(q.dtype)


def _flat(x: Tensor) -> Tensor:
    """[..., T, H, D] -> [N, T, H, D]."""
    return x.reshape(-1, *x.shape[-3:])


@dataclass(frozen=True)
class _Plan:
    """A part, and what a step's layers of one shape share about it.

    queries    [P * Hkv, 8] int64: flat (row, q head) in each place of each pair
    factor     what multiplies q there: the scale, times tau [P * Hkv, 8, 1] where there is one
    relatives  [N * Hkv, 8] int64: flat (row, q head) in each place of each tile, for r
    tau        what multiplies r [N * Hkv, 8, 1], or None
    mask       [P, 1, 8, 128] fp32, 0 or -inf, where there is no bias to carry it, else None
    columns    [extent, a multiple of 16] int64: of the bank, farthest first
    bias_start [P * Hkv, 8] int64: where in the biases of the part (see `_bias`) the 128 of a pair,
               kv head and query begin, or None
    before, after  [N * Hkv, 8, -] fp32: biases of keys farther than the bank's and of keys after
               the query, or None
    sinks      (pairs [n] int64, [n, 1, 8, 128] bool): keys seen as sinks behind the window; None
               where there are none. The mask has them as seen, the biases do not
    cells      the part's, None where partials come in their order and leave no cell empty
    some_blind a query may see no key of a leaf that its tile meets
    rows       [T, H] int64: where in the part's result each (row, q head) is, None if not all are
    written    `part.queries`, where only some are
    """

    part: AttentionPart
    queries: Tensor
    factor: float | Tensor
    relatives: Tensor
    tau: Tensor | None
    mask: Tensor | None
    columns: Tensor | None
    bias_start: Tensor | None
    before: Tensor | None
    after: Tensor | None
    sinks: tuple[Tensor, Tensor] | None
    cells: Tensor | None
    some_blind: bool
    rows: Tensor | None
    written: Tensor | None


def _sinks(
    part: AttentionPart, weights: AttentionWeights, distance: Integers, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """distance [P, 8] of a pair's queries from the first key of its leaf -> `_Plan.sinks`."""
    (pairs,) = (part.leaf_index * LEAF < weights.num_sink_tokens).nonzero()
    key = np.arange(LEAF)
    is_sink = part.leaf_index[pairs, None] * LEAF + key < weights.num_sink_tokens
    seen = (distance[pairs, :, None] - key >= weights.window) & is_sink[:, None]
    return (on_device(pairs, device), on_device(seen[:, None], device)) if seen.any() else None


def _show(sinks: tuple[Tensor, Tensor], bias: Tensor) -> None:
    """Zero, in place, for the sinks that bias [P, Hkv or 1, 8, 128] hides with -inf."""
    pairs, seen = sinks
    bias.index_copy_(0, pairs, bias.index_select(0, pairs).masked_fill_(seen, 0.0))


def _result_rows(part: AttentionPart, num_rows: int, num_heads: int) -> Integers | None:
    """`_Plan.rows`."""
    rows = np.full(num_rows * num_heads, -1)
    rows[part.queries] = np.arange(len(part.queries))
    return None if (rows < 0).any() else rows.reshape(num_rows, num_heads)


def _plan(
    part: AttentionPart,
    weights: AttentionWeights,
    num_kv_heads: int,
    num_rows: int,
    num_heads: int,
    device: torch.device,
) -> _Plan:
    """A query's biases by distance, farthest first, are 128 of -inf (outside the window), zeros
    (in the window, beyond the bank), the bank's, 128 of -inf (after the query). Those of a leaf are
    128 of them in a row. Of more than 128 zeros, 128 are kept: no leaf sees past both their ends.
    """
    num_tiles, num_pairs = len(part.positions), len(part.pair_tile)
    places = num_kv_heads * TILE_ROWS
    factor: float | Tensor = weights.scale
    tau = log_scale(on_device(part.positions, device), weights)
    if tau is not None:
        tau = tau[:, None].expand(-1, num_kv_heads, -1).reshape(num_tiles, places, 1)
        of_pairs = tau.index_select(0, on_device(part.pair_tile, device))
        factor = of_pairs.view(-1, TILE_ROWS, 1) * weights.scale
        tau = tau.view(-1, TILE_ROWS, 1)

    extent = _extent(weights)
    zeros = min(weights.window - extent, LEAF)
    left_out = weights.window - extent - zeros
    distance = part.positions[part.pair_tile] - part.leaf_index[:, None] * LEAF
    sinks = _sinks(part, weights, distance, device) if weights.num_sink_tokens else None
    blind = (distance < 0) | (distance >= weights.window + LEAF - 1)
    distance = distance - (distance - (extent + LEAF - 1)).clip(0, left_out)
    start = (LEAF + zeros + extent - 1 - distance).clip(0, LEAF + zeros + extent)
    mask = columns = bias_start = before = after = None
    if weights.rel_bank is None:
        row = np.full(zeros + 2 * LEAF, -np.inf, np.float32)
        row[LEAF : LEAF + zeros] = 0
        seen = np.lib.stride_tricks.sliding_window_view(row, LEAF)[start]
        mask = on_device(seen, device).view(num_pairs, 1, TILE_ROWS, LEAF)
        if sinks is not None:
            _show(sinks, mask)
    else:
        width = zeros + extent + 2 * LEAF
        query = part.pair_tile[:, None] * places + np.arange(places)
        start = query.reshape(-1, num_kv_heads, TILE_ROWS) * width + start[:, None]
        bias_start = on_device(start.reshape(-1, TILE_ROWS), device)
        farthest_first = np.arange(extent - 1, extent - 1 - round_up(extent, WIDTH), -1)
        columns = on_device(np.maximum(farthest_first, 0), device)
        lead = num_tiles * num_kv_heads, TILE_ROWS
        after = torch.full((*lead, LEAF), -torch.inf, device=device)
        before = after if not zeros else F.pad(after, (0, zeros))

    queries = part.queries.reshape(num_tiles, places)
    rows = _result_rows(part, num_rows, num_heads)
    in_order = len(part.cells) == part.num_cells
    return _Plan(
        part=part,
        queries=on_device(queries[part.pair_tile].reshape(-1, TILE_ROWS), device),
        factor=factor,
        relatives=on_device(queries.reshape(-1, TILE_ROWS), device),
        tau=tau,
        mask=mask,
        columns=columns,
        bias_start=bias_start,
        before=before,
        after=after,
        sinks=sinks,
        cells=None if in_order else on_device(part.cells, device),
        some_blind=bool(blind.any()),
        rows=None if rows is None else on_device(rows, device),
        written=on_device(part.queries, device) if rows is None else None,
    )


def _plans(
    rows: RowBatch, weights: AttentionWeights, num_kv_heads: int, group: int
) -> tuple[_Plan, ...]:
    extent = None if weights.rel_bank is None else _extent(weights)
    log = (weights.log_floor, weights.log_alpha)
    seen = (weights.window, weights.num_sink_tokens)
    key = ("streaming_attention", num_kv_heads, group, *seen, weights.scale, extent, log)
    plans: tuple[_Plan, ...] | None = rows.derived.get(key)
    if plans is None:
        parts = build_parts(rows, *seen, num_kv_heads, group)
        size, device = (num_kv_heads, rows.num_rows, num_kv_heads * group), rows.positions.device
        plans = tuple(_plan(part, weights, *size, device) for part in parts)
        rows.derived[key] = plans
    return plans


def _leaf_rows(arena: Ring | Pages, leaves: Leaves, rows: RowBatch) -> Tensor:
    """[L * Hkv, 128] int64: the (position, kv head) rows of the leaves, head before position."""
    key = ("streaming_attention", "leaves", leaves, *arena.places_key)
    found: Tensor | None = rows.derived.get(key)
    if found is None:
        device = rows.positions.device
        slot, first = on_device(leaves.slot, device), on_device(leaves.index * LEAF, device)
        starts = arena.places(slot, first)[:, None, None] * arena.data.shape[2]
        found = (starts + on_device(leaves.rows, device)).flatten(0, 1)
        rows.derived[key] = found
    return found


def _gather(arena: Ring | Pages, leaves: Leaves, rows: RowBatch) -> Tensor:
    """Keys or values [L * Hkv, 128, D] fp32 of the leaves."""
    return _fp32(torch.embedding(arena.heads, _leaf_rows(arena, leaves, rows)))


def _bias(r: Tensor, weights: AttentionWeights, plan: _Plan) -> Tensor:
    """r [T * H, d_rel] -> [P * Hkv, 8, 128] fp32, -inf for hidden keys."""
    assert weights.rel_bank is not None and plan.columns is not None
    assert plan.bias_start is not None and plan.before is not None and plan.after is not None
    bank = _fp32(weights.rel_bank.index_select(1, plan.columns))
    tiles = _fp32(torch.embedding(r, plan.relatives))
    if plan.tau is not None:
        tiles = tiles * plan.tau
    by_distance = torch.bmm(tiles, bank.expand(tiles.shape[0], -1, -1))
    extent = _extent(weights)
    if by_distance.shape[-1] != extent:
        by_distance = by_distance[..., :extent]
    biases = torch.cat((plan.before, by_distance, plan.after), -1)
    windows = biases.as_strided((biases.numel() - LEAF + 1, LEAF), (1, 1))
    return torch.embedding(windows, plan.bias_start)


def _products(a: Tensor, b: Tensor, part: AttentionPart) -> Tensor:
    """a [P * Hkv, 8, m], b [L * Hkv, m, n] -> [P * Hkv, 8, n]: each pair with the leaf it meets."""
    if len(part.runs) == 1 and len(a) == len(b):
        return torch.bmm(a, b)
    heads = len(a) // len(part.pair_tile)
    y = a.new_empty(*a.shape[:2], b.shape[2])
    for pair, leaf, length in part.runs:
        pairs = slice(pair * heads, (pair + length) * heads)
        torch.bmm(a[pairs], b[leaf * heads : (leaf + length) * heads], out=y[pairs])
    return y


def _fold(maxima: Tensor, sums: Tensor, plan: _Plan) -> Tensor:
    """maxima [P * Hkv, 8, 1], sums [P * Hkv, 8, W] -> [N, Hkv * 8, W]."""
    part = plan.part
    num_tiles, groups, size = len(part.positions), part.num_groups, part.group_size
    cells = num_tiles * groups, size, sums.numel() // len(part.cells) // sums.shape[2]
    if plan.cells is not None:
        by_cell = part.num_cells, cells[2]
        every = sums.new_zeros(*by_cell, sums.shape[2])
        sums = every.index_copy_(0, plan.cells, sums.view(-1, *every.shape[1:]))
        tops = maxima.new_full((*by_cell, 1), NOTHING)
        maxima = tops.index_copy_(0, plan.cells, maxima.view(-1, *tops.shape[1:]))
    top, total = merge(maxima.view(*cells, 1), sums.view(*cells, -1))
    if groups > 1:
        by_group = num_tiles, groups, cells[2]
        _, total = merge(top.view(*by_group, 1), total.view(*by_group, -1))
    return total


def _attend(
    q: Tensor,
    r: Tensor | None,
    keys: Tensor,
    values: Tensor,
    weights: AttentionWeights,
    plan: _Plan,
) -> Tensor:
    """q [T * H, D], r [T * H, d_rel], keys and values [L * Hkv, 128, D] -> [N * Hkv * 8, D] fp32,
    the queries of one part.
    """
    head_dim = q.shape[1]
    tiles = _fp32(torch.embedding(q, plan.queries)) * plan.factor
    logits = _products(tiles, keys.transpose(1, 2), plan.part)
    by_pair = len(plan.part.pair_tile), -1, TILE_ROWS, LEAF
    if plan.mask is not None:
        logits.view(by_pair).add_(plan.mask)
    elif r is not None:
        bias = _bias(r, weights, plan)
        if plan.sinks is not None:
            _show(plan.sinks, bias.view(by_pair))
        logits.add_(bias)

    maxima = logits.amax(-1, keepdim=True)
    if plan.some_blind:
        maxima.clamp_min_(NOTHING)
    shares = logits.sub_(maxima).exp_()
    mixed = _products(shares, values, plan.part)
    total = _fold(maxima, torch.cat((mixed, shares.sum(-1, keepdim=True)), -1), plan)
    mixed, shares = total.split_with_sizes((head_dim, 1), -1)
    return (mixed / shares).view(-1, head_dim)


def _rotation(q: Tensor, theta: float, rows: RowBatch) -> tuple[Tensor, Tensor]:
    """`rope.rotation` of the rows, worked out once a step."""
    how = q.shape[-1], theta, wide(q.dtype)
    key = ("streaming_attention", "rotation", *how)
    if key not in rows.derived:
        rows.derived[key] = rotation(rows.positions, *how)
    return rows.derived[key]  # type: ignore[no-any-return]


def write_kv(k: Tensor, v: Tensor, state: KVState, rows: RowBatch) -> None:
    """k and v [T, Hkv, D] of the rows that run, to their positions."""
    if not rows.all_run:
        k, v = k.index_select(0, rows.run_rows), v.index_select(0, rows.run_rows)
    for arena, new in ((state.k, k), (state.v, v)):
        key = ("streaming_attention", "written", *arena.places_key)
        places = rows.derived.get(key)
        if places is None:
            places = rows.derived[key] = arena.places(rows.run_slots, rows.run_positions)
        arena.put(places, new)


def _streamed(
    x: AttentionInputs, weights: AttentionWeights, state: KVState, rows: RowBatch
) -> Tensor:
    q, k, r = x.q, x.k, x.r
    num_heads, head_dim = q.shape[1:]
    if weights.rope_theta is not None:
        by = _rotation(q, weights.rope_theta, rows)
        q, k = rotate(q, *by), None if k is None else rotate(k, *by)
    if k is not None and x.v is not None:
        write_kv(k, x.v, state, rows)
    num_kv_heads = state.k.data.shape[2]
    flat_q, flat_r = q.reshape(-1, head_dim), None if r is None else r.reshape(-1, r.shape[-1])
    plans = _plans(rows, weights, num_kv_heads, num_heads // num_kv_heads)
    y: Tensor | None = None
    gathered: Leaves | None = None
    for plan in plans:
        if plan.part.leaves is not gathered:
            gathered = plan.part.leaves
            keys, values = (_gather(arena, gathered, rows) for arena in (state.k, state.v))
        result = _attend(flat_q, flat_r, keys, values, weights, plan)
        if result.dtype != q.dtype:
            result = result.to(q.dtype)
        if plan.written is None:
            assert plan.rows is not None
            return torch.embedding(result, plan.rows)
        if y is None:
            y = flat_q.new_zeros(flat_q.shape)
        y.index_copy_(0, plan.written, result)
    return torch.zeros_like(q) if y is None else y.view(q.shape)


def _whole(x: AttentionInputs, weights: AttentionWeights, rows: RowBatch) -> Tensor:
    assert x.k is not None and x.v is not None
    y = torch.zeros_like(x.q)
    for index in rows.equal_lines:
        r = None if x.r is None else x.r[index]
        part = core(x.q[index], x.k[index], x.v[index], r, weights, rows.positions[index])
        y = y.index_copy(0, index.reshape(-1), part.flatten(0, 1))
    return y


def streaming_attention_reference(
    x: AttentionInputs,
    weights: AttentionWeights,
    state: KVState | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `streaming_attention`."""
    if state is None:
        y = _whole(x, weights, rows)
    else:
        with torch.no_grad():
            y = _streamed(x, weights, state, rows)
    return y if out is None else out.copy_(y)
