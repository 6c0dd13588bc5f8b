"""Launches the kernels of streaming_attention: a plan once a step, then append and attend."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from microturn.kernels.arena import LEAF
from microturn.kernels.configs import choose
from microturn.kernels.device.kv import KVArguments, kv_arguments
from microturn.kernels.launch import device_name, launch, num_sms, zeroed
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention.kernel import append_rows, attend, plan_step
from microturn.kernels.streaming_attention.layout import GROUP_LEAVES
from microturn.kernels.streaming_attention.reference import (
    AttentionInputs,
    AttentionWeights,
    KVState,
)

HEAD = RECORD = 8


class Sizes(NamedTuple):
    """What a step's plan and workspace are sized by: bounds that follow from shapes alone.

    tiles     of queries that a line has at most, of `tile` rows each
    segments  lines times tiles
    ranges    that the leaves are cut into, one program each for every kv head
    singles   slot of the first partial of a single leaf; slots of groups come before
    slots     partials of a kv head
    """

    tile: int
    tiles: int
    segments: int
    ranges: int
    singles: int
    slots: int

    @property
    def plan(self) -> int:
        """int32 of the plan."""
        return HEAD + RECORD * (2 * self.segments + 1) + self.ranges


def sizes_of(
    num_lines: int,
    line_bound: int,
    num_kv_heads: int,
    group_pad: int,
    window: int,
    block_q: int,
    programs: int,
    num_sinks: int = 0,
) -> Sizes:
    """For `programs` that are resident at once. Pure.

    Every range is as long as any other, so all programs end together; with fewer leaves than ranges
    each leaf has a program of its own.
    """
    tile = block_q // group_pad
    tiles = -(-line_bound // tile)
    segments = num_lines * tiles
    leaves = (window + tile - 2) // LEAF + 2
    sink_leaves = -(-num_sinks // LEAF)
    groups = (leaves - 1) // GROUP_LEAVES + 2 + -(-sink_leaves // GROUP_LEAVES)
    leaves += sink_leaves
    ranges = max(1, min(programs // num_kv_heads, segments * leaves))
    singles = segments * groups
    slots = singles + (GROUP_LEAVES - 1) * ranges
    return Sizes(tile, tiles, segments, ranges, singles, slots)


def _plan(rows: RowBatch, sizes: Sizes, window: int, num_sinks: int) -> Tensor:
    """The plan of a step, shared by its layers of one shape."""
    key = ("streaming_attention", "plan", sizes, window, num_sinks)
    if key not in rows.derived:
        plan = torch.empty(sizes.plan, dtype=torch.int32, device=rows.positions.device)
        launch(
            plan_step,
            (1,),
            rows.slot_ids,
            rows.row_offsets,
            rows.positions,
            rows.exec_mask.view(torch.uint8),
            plan,
            rows.num_lines,
            rows.num_rows,
            window,
            sizes.tiles,
            sizes.ranges,
            TILE=sizes.tile,
            SEGMENTS=triton.next_power_of_2(max(sizes.segments, 1)),
            SINKS=num_sinks,
            pdl=True,
            num_warps=4,
        )
        rows.derived[key] = plan
    return rows.derived[key]  # type: ignore[no-any-return]


@cache
def _turns(theta: float, head_dim: int, device: torch.device) -> Tensor:
    """[D // 2] fp64: how often each pair goes round from one position to the next."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device)
    return theta ** (-steps / head_dim) / (2 * torch.pi)


def _row_stride(name: str, x: Tensor) -> int:
    if x.stride()[1:] != (x.shape[2], 1):
        raise ValueError(
            f"streaming_attention: the heads of a row of {name} must follow one another, got "
            f"strides {x.stride()} for {list(x.shape)}; make it contiguous first"
        )
    return x.stride(0)


def _arenas(state: KVState) -> tuple[KVArguments, KVArguments]:
    k, v = kv_arguments(state.k), kv_arguments(state.v)
    if k[2:] != v[2:] or k.data.dtype != v.data.dtype:
        raise ValueError(
            f"streaming_attention: k and v must be kept alike, got capacity, pinned and page size "
            f"{k[2:]} of {k.data.dtype} and {v[2:]} of {v.data.dtype}"
        )
    if k.data.dtype == torch.float8_e4m3fn and k.data.shape[3] % 16:
        raise ValueError(
            f"streaming_attention: 8-bit keys and values are read 16 at a time, got heads of "
            f"{k.data.shape[3]}; pad them to a multiple of 16 or keep 16 bits"
        )
    return k, v


def _append(
    x: AttentionInputs,
    theta: float | None,
    k: KVArguments,
    v: KVArguments,
    rows: RowBatch,
) -> Tensor:
    """Writes the rows' keys and values; gives q, turned where there is rope."""
    write = x.k is not None and x.v is not None
    if theta is None and not write:
        return x.q
    num_rows, num_heads, head_dim = x.q.shape
    num_kv_heads = k.data.shape[2]
    k_in = x.q if x.k is None else x.k
    v_in = x.q if x.v is None else x.v
    q = x.q if theta is None else torch.empty_like(x.q, memory_format=torch.contiguous_format)
    launch(
        append_rows,
        (num_rows, num_kv_heads if theta is None else num_heads),
        x.q,
        q,
        k_in,
        v_in,
        k.data,
        v.data,
        k.table,
        v.table,
        x.q if theta is None else _turns(theta, head_dim, x.q.device),
        rows.slot_ids,
        rows.row_offsets,
        rows.positions,
        rows.exec_mask.view(torch.uint8),
        rows.num_lines,
        k.capacity,
        k.pinned,
        _row_stride("q", x.q),
        _row_stride("k", k_in),
        _row_stride("v", v_in),
        H=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        PAGE_SIZE=k.page_size,
        LINES=triton.next_power_of_2(max(rows.num_lines, 1)),
        ROPE=theta is not None,
        WRITE=write,
        pdl=True,
        num_warps=1,
    )
    return q


def streaming_attention_kernel(
    x: AttentionInputs,
    weights: AttentionWeights,
    state: KVState | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `streaming_attention`. Raises NotImplementedError without state."""
    if state is None:
        raise NotImplementedError("whole sequences without state are torch's: call the reference")
    num_rows, num_heads, head_dim = x.q.shape
    y = torch.empty_like(x.q, memory_format=torch.contiguous_format) if out is None else out
    if not num_rows:
        return y
    k, v = _arenas(state)
    num_kv_heads = k.data.shape[2]
    fp8 = k.data.dtype == torch.float8_e4m3fn
    group_pad = triton.next_power_of_2(num_heads // num_kv_heads)
    config = choose(
        "streaming_attention",
        device=device_name(x.q.device),
        Q=rows.line_bound * group_pad,
        bytes=head_dim * k.data.element_size(),
        fp8=fp8,
    )
    programs = num_sms(x.q.device) * config.pop("CTAS")
    sizes = sizes_of(
        rows.num_lines,
        rows.line_bound,
        num_kv_heads,
        group_pad,
        weights.window,
        config["BLOCK_Q"],
        programs,
        weights.num_sink_tokens,
    )
    plan = _plan(rows, sizes, weights.window, weights.num_sink_tokens)
    q = _append(x, weights.rope_theta, k, v, rows)
    tile_rows = min(sizes.tile, triton.next_power_of_2(max(rows.line_bound, 1)))
    block_d = triton.next_power_of_2(head_dim)
    size = sizes.slots * num_kv_heads * (head_dim + 2) * config["BLOCK_Q"]
    bias = x.r is not None and weights.rel_bank is not None
    r = q if x.r is None else x.r
    bank = q[0] if weights.rel_bank is None else weights.rel_bank
    launch(
        attend,
        (sizes.ranges * num_kv_heads,),
        q,
        r,
        bank,
        k.data.view(torch.int32) if fp8 else k.data,
        v.data.view(torch.int16) if fp8 else v.data,
        k.table,
        v.table,
        y,
        plan,
        torch.empty(size, dtype=torch.float32, device=q.device),
        zeroed("streaming_attention", 1 << 16, q.device),
        weights.scale,
        weights.log_alpha,
        float(weights.log_floor or 1),
        weights.window,
        min(bank.shape[1], weights.window),
        k.capacity,
        k.pinned,
        _row_stride("q", q),
        _row_stride("r", r),
        bank.stride(0),
        bank.stride(1),
        _row_stride("out", y),
        sizes.segments,
        sizes.singles,
        H=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        BLOCK_D=block_d,
        REL=r.shape[2],
        BLOCK_R=max(16, triton.next_power_of_2(r.shape[2])),
        GROUP_PAD=group_pad,
        TILE_ROWS=tile_rows,
        MERGE_Q=min(8, tile_rows * group_pad),
        PAGE_SIZE=k.page_size,
        SINKS=weights.num_sink_tokens,
        BIAS=bias,
        TAU=weights.log_floor is not None,
        FP8=fp8,
        pdl=True,
        **config,
    )
    return y
