"""Launches the kernel of codec_transformer.

All layers in one cooperative launch: 50 MB of weights stay in L2 and a layer is five stages of a
microsecond or two, each of which needs every value of the one before, so that as launches of their
own they would cost twice as much. Products take tiles of 32 or 16 weights on mma.sync, so that more
than half of the machine has work where 512 outputs are left; a stage never changes the instruction
with the number of rows, and so keeps its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from microturn.kernels import tree
from microturn.kernels.arena import LEAF, Ring
from microturn.kernels.codec_transformer import kernel as stages
from microturn.kernels.codec_transformer.kernel import codec_layers
from microturn.kernels.codec_transformer.reference import CodecTransformerWeights
from microturn.kernels.configs import choose
from microturn.kernels.device.kv import kv_arguments
from microturn.kernels.launch import device_name, interpreted, launch, num_sms, zeroed
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention import KVState

FIELDS = (
    "norm1_gain",
    "norm1_bias",
    "in_proj",
    "out_proj",
    "scale1",
    "norm2_gain",
    "norm2_bias",
    "ff_in",
    "ff_out",
    "scale2",
)
QUERIES = 16
"""Rows of a line that attend together."""


def codec_transformer_kernel(
    x: Tensor,
    weights: CodecTransformerWeights,
    state: Sequence[KVState] | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `codec_transformer`. Raises ValueError on heads that are no power of two from 16 on, on
    weights that are not contiguous, and on layers whose arenas differ in anything but their data.
    """
    (num_rows, width), device = x.shape, x.device
    head_dim = width // weights.num_heads
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise ValueError(
            f"codec_transformer: the kernel wants heads of 16, 32, 64, ... values, got {head_dim}"
        )
    if rows is None:
        rows = RowBatch.build([0], [num_rows], [0], device=device)
    slot_ids = rows.slot_ids
    if state is None:
        state, slot_ids = _scratch(x, weights, rows)
    y = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    if num_rows == 0:
        return y
    k, v = (kv_arguments(arena) for arena in (state[0].k, state[0].v))
    config = choose("codec_transformer", device=device_name(device), T=num_rows)
    inside = weights.layers[0].ff_in.shape[0]
    layers = len(weights.layers)
    programs = num_sms(device)

    def empty(*shape: int, dtype: torch.dtype = x.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    arguments = (
        _table(weights, state, device),
        x if x.stride(1) == 1 else x.contiguous(),
        y,
        slot_ids,
        rows.row_offsets,
        rows.exec_mask.view(torch.uint8),
        rows.positions,
        _turns(head_dim, weights.rope_theta, device),
        k.data,
        k.table if k.page_size else slot_ids,
        empty(num_rows, width),
        empty(2, width // 16, num_rows, dtype=torch.float32),
        empty(num_rows, width),
        empty(num_rows, width),
        empty(num_rows, inside),
        empty(num_rows, dtype=torch.int32),
        empty(layers, 4, width, dtype=torch.float32),
        zeroed("codec_transformer", 1, device),
        rows.num_lines,
        num_rows,
        triton.cdiv(max(rows.line_bound, 1), QUERIES),
        x.stride(0),
        y.stride(0),
        weights.eps,
        head_dim**-0.5,
        k.capacity,
        k.pinned,
        v.capacity,
        v.pinned,
        layers,
    )
    options = config | {
        "D": width,
        "POW_D": triton.next_power_of_2(width),
        "POW_GROUPS": max(16, triton.next_power_of_2(width // 16)),
        "F": inside,
        "HEADS": weights.num_heads,
        "WINDOW": weights.window,
        "K_PAGE": k.page_size,
        "V_PAGE": v.page_size,
        "LINES": triton.next_power_of_2(rows.num_lines),
        "LEAF": LEAF,
    }
    if interpreted():
        _one_by_one(programs, layers, arguments, options)
    else:
        launch(
            codec_layers,
            (programs,),
            *arguments,
            0,
            layers,
            STAGE=stages.ALL,
            PREFETCH=True,
            barriers=5 * layers,
            reached=tree.tensors((weights, state)),
            launch_cooperative_grid=True,
            **options,
        )
    return y


def _one_by_one(
    programs: int, layers: int, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """The stages as launches of their own."""

    def run(stage: Any, first: int, last: int) -> None:
        launch(
            codec_layers,
            (programs,),
            *arguments,
            first,
            last,
            STAGE=stage,
            PREFETCH=False,
            **options,
        )

    run(stages.INPUT, 0, 0)
    for layer in range(layers):
        for stage in (stages.QKV, stages.ATTEND, stages.OUT, stages.FF_IN, stages.FF_OUT):
            run(stage, layer, layer + 1)


def _scratch(
    x: Tensor, weights: CodecTransformerWeights, rows: RowBatch
) -> tuple[Sequence[KVState], Tensor]:
    """Arenas for whole sequences, one that all layers share, and the slot of each line in them."""
    capacity = max(LEAF, triton.cdiv(rows.line_bound, LEAF) * LEAF)
    shape = (rows.num_lines, capacity, weights.num_heads, x.shape[1] // weights.num_heads)
    k, v = (Ring(torch.empty(shape, dtype=x.dtype, device=x.device)) for _ in range(2))
    lines = torch.arange(rows.num_lines, dtype=torch.int32, device=x.device)
    slots = torch.where(rows.slot_ids >= 0, lines, -1)
    return [KVState(k, v)] * len(weights.layers), slots


def _table(
    weights: CodecTransformerWeights, state: Sequence[KVState], device: torch.device
) -> Tensor:
    """[layers, 14] int64 addresses, in the order of the kernel's glossary."""
    found = [_layer_tensors(layer, kv) for layer, kv in zip(weights.layers, state, strict=True)]
    first = _shape_of(state[0])
    for i, kv in enumerate(state):
        if _shape_of(kv) != first:
            raise ValueError(
                f"codec_transformer: the arenas of layers 0 and {i} differ in more than data; "
                f"declare them alike"
            )
    if device.type == "meta":
        return torch.empty(len(found), len(FIELDS) + 4, dtype=torch.int64, device=device)
    addresses = tuple(tuple(t.data_ptr() for t in tensors) for tensors in found)
    for i, of_layer in enumerate(addresses):
        for name, address in zip(FIELDS, of_layer, strict=False):
            if address % 16:
                raise ValueError(
                    f"codec_transformer: layers[{i}].{name} begins at an address that is no "
                    f"multiple of 16; give it a tensor of its own"
                )
    return _kept_table(addresses, device)


@cache
def _kept_table(addresses: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Kept by the addresses themselves, so a table is never out of date; kept for good, since a
    graph that was captured goes on reading it.
    """
    return torch.tensor(addresses, dtype=torch.int64, device=device)


def _layer_tensors(layer: Any, kv: KVState) -> list[Tensor]:
    tensors = [getattr(layer, name) for name in FIELDS]
    for name, tensor in zip(FIELDS, tensors, strict=True):
        if not tensor.is_contiguous():
            raise ValueError(f"codec_transformer: {name} must be contiguous")
    k, v = kv_arguments(kv.k), kv_arguments(kv.v)
    return [*tensors, k.data, v.data, k.table, v.table]


def _shape_of(kv: KVState) -> tuple[Any, ...]:
    return tuple(
        (
            type(arena),
            arena.data.dtype,
            arena.data.shape[1:],
            arena.capacity,
            *kv_arguments(arena)[3:],
        )
        for arena in (kv.k, kv.v)
    )


@cache
def _turns(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """[head_dim / 2] fp64: turns a position makes each pair go round."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float64)
    return (theta ** (-steps / head_dim) / (2 * torch.pi)).to(device)
