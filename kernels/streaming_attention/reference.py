"""streaming_attention in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import LEAF, ArenaKind, ArenaSpec, Pages, Ring, ring_capacity
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention.layout import (
    GROUP_LEAVES,
    AttentionPart,
    Leaves,
    Run,
    build_parts,
)
from microturn.kernels.streaming_attention.merge import NOTHING, merge
from microturn.kernels.streaming_attention.rope import apply_rope
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
    if weights.log_floor is None:
        return None
    most = weights.window + weights.num_sink_tokens
    visible = (positions + 1).clamp_max(most).double()
    return (1 + weights.log_alpha * (visible / weights.log_floor).clamp_min(1).log()).float()


def _extent(weights: AttentionWeights) -> int:
    """Distances that have a bias: none is behind the window."""
    return 0 if weights.rel_bank is None else min(weights.rel_bank.shape[1], weights.window)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


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

    factor     what multiplies q: the scale, times tau [N * Hkv * 8, 1] where there is one
    tau        what multiplies r, or None
    mask       [P, 1, 8, 128] fp32, 0 or -inf, where there is no bias to carry it, else None
    bias_start [P * Hkv * 8] int64: where in the biases of the part (see `_bias`) the 128 of a pair,
               kv head and query begin, or None
    bias_zeros zeros beyond the bank's
    border     [N * Hkv, 8, 128] fp32 of -inf, or None
    sinks      (pairs [n] int64, [n, 1, 8, 128] bool): keys seen as sinks behind the window; None
               where there are none. The mask has them as seen, the biases do not
    ring_rows  `_leaf_rows` by size of the ring, filled when first needed
    """

    part: AttentionPart
    factor: float | Tensor
    tau: Tensor | None
    mask: Tensor | None
    bias_start: Tensor | None
    bias_zeros: int
    border: Tensor | None
    sinks: tuple[Tensor, Tensor] | None
    ring_rows: dict[tuple[int, int], Tensor]


def _slices(values: Tensor, starts: Tensor) -> Tensor:
    """values [n], contiguous, starts [m] int64 -> [m, 128]: values[start : start + 128] of each."""
    windows = values.as_strided((values.shape[0] - LEAF + 1, LEAF), (1, 1))
    return windows.index_select(0, starts)


def _sinks(
    part: AttentionPart, weights: AttentionWeights, distance: Tensor
) -> tuple[Tensor, Tensor] | None:
    """distance [P, 8] of a pair's queries from the first key of its leaf -> `_Plan.sinks`."""
    pairs = (part.leaf_index * LEAF < weights.num_sink_tokens).nonzero()[:, 0]
    key = torch.arange(LEAF, device=distance.device)
    is_sink = part.leaf_index[pairs, None] * LEAF + key < weights.num_sink_tokens
    seen = (distance[pairs, :, None] - key >= weights.window) & is_sink[:, None]
    return (pairs, seen[:, None]) if bool(seen.any()) else None


def _show(sinks: tuple[Tensor, Tensor], bias: Tensor) -> None:
    """Zero, in place, for the sinks that bias [P, Hkv or 1, 8, 128] hides with -inf."""
    pairs, seen = sinks
    bias.index_copy_(0, pairs, bias.index_select(0, pairs).masked_fill_(seen, 0.0))


def _plan(part: AttentionPart, weights: AttentionWeights, num_kv_heads: int) -> _Plan:
    """A query's biases by distance, farthest first, are 128 of -inf (outside the window), zeros
    (in the window, beyond the bank), the bank's, 128 of -inf (after the query). Those of a leaf are
    128 of them in a row. Of more than 128 zeros, 128 are kept: no leaf sees past both their ends.
    """
    tau = log_scale(part.positions, weights)
    factor: float | Tensor = weights.scale
    if tau is not None:
        tau = tau.expand(-1, num_kv_heads, -1, -1).reshape(-1, 1)
        factor = tau * weights.scale
    extent = _extent(weights)
    zeros = min(weights.window - extent, LEAF)
    left_out = weights.window - extent - zeros
    positions = part.positions.view(-1, TILE_ROWS).index_select(0, part.pair_tile)
    distance = positions - part.leaf_index[:, None] * LEAF
    sinks = _sinks(part, weights, distance)
    distance = distance - (distance - (extent + LEAF - 1)).clamp(0, left_out)
    start = (LEAF + zeros + extent - 1 - distance).clamp(0, LEAF + zeros + extent)
    if weights.rel_bank is None:
        row = F.pad(torch.zeros(zeros, device=start.device), (LEAF, LEAF), value=float("-inf"))
        mask = _slices(row, start.view(-1)).view(-1, 1, TILE_ROWS, LEAF)
        if sinks is not None:
            _show(sinks, mask)
        return _Plan(part, factor, tau, mask, None, 0, None, sinks, {})
    places = num_kv_heads * TILE_ROWS
    place = torch.arange(places, device=start.device).view(num_kv_heads, TILE_ROWS)
    query = part.pair_tile[:, None, None] * places + place
    start = query * (zeros + extent + 2 * LEAF) + start[:, None]
    num_products = part.queries.shape[0] // TILE_ROWS
    border = torch.full((num_products, TILE_ROWS, LEAF), float("-inf"), device=start.device)
    return _Plan(part, factor, tau, None, start.view(-1), zeros, border, sinks, {})


def _plans(
    rows: RowBatch, weights: AttentionWeights, num_kv_heads: int, group: int
) -> tuple[_Plan, ...]:
    extent = None if weights.rel_bank is None else _extent(weights)
    log = (weights.log_floor, weights.log_alpha)
    seen = (weights.window, weights.num_sink_tokens)
    key = ("streaming_attention", num_kv_heads, group, *seen, weights.scale, extent, log)
    if key not in rows.derived:
        parts = build_parts(rows, *seen, num_kv_heads, group)
        rows.derived[key] = tuple(_plan(part, weights, num_kv_heads) for part in parts)
    return rows.derived[key]  # type: ignore[no-any-return]


def _leaf_rows(arena: Ring | Pages, leaves: Leaves) -> Tensor:
    """[L * Hkv * 128] int64: the (position, kv head) rows of the leaves, head before position."""
    starts = arena.places(leaves.slot, leaves.index * LEAF)
    num_kv_heads = arena.data.shape[2]
    return ((starts * num_kv_heads)[:, None, None] + leaves.rows).view(-1)


def _size(ring: Ring) -> tuple[int, int]:
    return ring.capacity, ring.pinned


def _kv_rows(state: KVState, plan: _Plan) -> tuple[Tensor, Tensor]:
    """`_leaf_rows` of k and of v. A ring's are kept for the step; a page table may change."""
    k, v, leaves = state.k, state.v, plan.part.leaves
    if isinstance(k, Ring) and isinstance(v, Ring) and _size(k) == _size(v):
        if _size(k) not in plan.ring_rows:
            plan.ring_rows[_size(k)] = _leaf_rows(k, leaves)
        return plan.ring_rows[_size(k)], plan.ring_rows[_size(k)]
    k_rows = _leaf_rows(k, leaves)
    if isinstance(k, Pages) and isinstance(v, Pages) and k.page_table is v.page_table:
        return k_rows, k_rows
    return k_rows, _leaf_rows(v, leaves)


def _gather(state: KVState, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Keys and values [L, Hkv, 128, D] fp32 of the part's leaves."""
    head_dim, shape = state.k.data.shape[3], plan.part.leaves.rows.shape
    k_rows, v_rows = _kv_rows(state, plan)
    keys = state.k.data.view(-1, head_dim).index_select(0, k_rows).float()
    values = state.v.data.view(-1, head_dim).index_select(0, v_rows).float()
    return keys.view(*shape, head_dim), values.view(*shape, head_dim)


def _bias(r: Tensor, weights: AttentionWeights, plan: _Plan) -> Tensor:
    """r [T * H, d_rel] -> [P * Hkv * 8, 128] fp32, -inf for hidden keys."""
    assert weights.rel_bank is not None
    assert plan.bias_start is not None and plan.border is not None
    extent = _extent(weights)
    width = plan.bias_zeros + extent
    bank = weights.rel_bank[:, :extent].float().flip(1)
    padded = round_up(width, WIDTH)
    if padded != extent:
        bank = F.pad(bank, (plan.bias_zeros, padded - width))
    tiles = r.index_select(0, plan.part.queries).float()
    if plan.tau is not None:
        tiles = tiles * plan.tau
    tiles = tiles.view(-1, TILE_ROWS, tiles.shape[-1])
    by_distance = torch.bmm(tiles, bank.expand(tiles.shape[0], -1, -1))
    bordered = torch.cat((plan.border, by_distance[..., :width], plan.border), -1)
    return _slices(bordered.view(-1), plan.bias_start)


def _products(a: Tensor, b: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """a [P, Hkv, 8, m], b [L, Hkv, m, n] -> [P, Hkv, 8, n]: each pair with the leaf it meets."""
    heads, inner, width = b.shape[1:]
    tiles = a.reshape(-1, TILE_ROWS, inner)
    y = a.new_empty(tiles.shape[0], TILE_ROWS, width)
    for pair, leaf, length in runs:
        pairs = slice(pair * heads, (pair + length) * heads)
        torch.bmm(tiles[pairs], b[leaf : leaf + length].flatten(0, 1), out=y[pairs])
    return y.view(-1, heads, TILE_ROWS, width)


def _attend(
    q: Tensor,
    r: Tensor | None,
    keys: Tensor,
    values: Tensor,
    weights: AttentionWeights,
    plan: _Plan,
) -> Tensor:
    """q [T * H, D], r [T * H, d_rel], keys and values [L, Hkv, 128, D] -> [N * Hkv * 8, D] fp32,
    the queries of one part.
    """
    part = plan.part
    head_dim, num_kv_heads = q.shape[1], keys.shape[1]
    num_tiles, num_pairs = part.positions.shape[0], part.pair_tile.shape[0]
    places = num_kv_heads * TILE_ROWS

    tiles = q.index_select(0, part.queries).float() * plan.factor
    if num_tiles > 1:
        tiles = tiles.view(num_tiles, -1).index_select(0, part.pair_tile)
    else:
        tiles = tiles.expand(num_pairs, -1, -1)
    tiles = tiles.reshape(num_pairs, num_kv_heads, TILE_ROWS, head_dim)
    logits = _products(tiles, keys.transpose(2, 3), part.runs)
    if plan.mask is not None:
        logits += plan.mask
    elif r is not None:
        bias = _bias(r, weights, plan).view(logits.shape)
        if plan.sinks is not None:
            _show(plan.sinks, bias)
        logits += bias

    maxima = logits.amax(-1, keepdim=True).clamp_min_(NOTHING)
    shares = logits.sub_(maxima).exp_()
    mixed = _products(shares, values, part.runs)
    sums = torch.cat((mixed.view(num_pairs, places, -1), shares.sum(-1).view(-1, places, 1)), -1)

    cells = num_tiles * part.num_groups * GROUP_LEAVES
    all_sums = sums.new_zeros(cells, places, head_dim + 1).index_copy_(0, part.cells, sums)
    all_maxima = maxima.new_full((cells, places), NOTHING)
    all_maxima.index_copy_(0, part.cells, maxima.view(num_pairs, places))
    top, total = merge(
        all_maxima.view(-1, GROUP_LEAVES, places), all_sums.view(-1, GROUP_LEAVES, *sums.shape[1:])
    )
    if part.num_groups > 1:
        top, total = merge(
            top.view(num_tiles, part.num_groups, places),
            total.view(num_tiles, part.num_groups, *sums.shape[1:]),
        )
    total = total.view(-1, head_dim + 1)
    return total[:, :head_dim] / total[:, head_dim:]


def _write(k: Tensor, v: Tensor, weights: AttentionWeights, state: KVState, rows: RowBatch) -> None:
    if weights.rope_theta is not None:
        k = apply_rope(k, rows.positions, weights.rope_theta)
    run, slots = rows.run_rows, rows.run_slots
    if run.shape[0] != k.shape[0]:
        k, v = k.index_select(0, run), v.index_select(0, run)
    state.k.write(slots, rows.run_positions, k)
    state.v.write(slots, rows.run_positions, v)


def _streamed(
    x: AttentionInputs, weights: AttentionWeights, state: KVState, rows: RowBatch
) -> Tensor:
    q, r = x.q, x.r
    if weights.rope_theta is not None:
        q = apply_rope(q, rows.positions, weights.rope_theta)
    if x.k is not None and x.v is not None:
        _write(x.k, x.v, weights, state, rows)
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = state.k.data.shape[2]
    y = torch.zeros_like(q, memory_format=torch.contiguous_format)
    flat_q, flat_r = q.reshape(-1, head_dim), None if r is None else r.reshape(-1, r.shape[-1])
    gathered: Leaves | None = None
    for plan in _plans(rows, weights, num_kv_heads, num_heads // num_kv_heads):
        if plan.part.leaves is not gathered:
            gathered = plan.part.leaves
            keys, values = _gather(state, plan)
        result = _attend(flat_q, flat_r, keys, values, weights, plan)
        y.view(-1, head_dim).index_copy_(0, plan.part.queries, result.to(y.dtype))
    return y


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
