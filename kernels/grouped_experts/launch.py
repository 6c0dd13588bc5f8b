"""Launches the kernels of grouped_experts.

A decode step is two launches behind a router's: gate and up, then down, each reading every weight
byte it needs once. The shared experts' part of the first needs no routing and starts while the
router still selects. A prefill step is two launches that sort the pairs, two that multiply, one
that adds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from microturn.kernels.configs import Config, choose
from microturn.kernels.grouped_experts import kernel
from microturn.kernels.grouped_experts.layout import regime
from microturn.kernels.grouped_experts.reference import ExpertInputs, ExpertWeights
from microturn.kernels.launch import device_name, launch, num_sms, zeroed
from microturn.kernels.quantized import Quantized, Weight
from microturn.kernels.router import Routing
from microturn.kernels.router.work import TILE_ROWS, ExpertWork, padded, rows_on_device
from microturn.kernels.rows import RowBatch

CACHE_LINE = 128
"""Bytes of global memory that come at once."""

SPAN = 2048
"""Pairs that one program of a prefill step sorts."""


class _Sizes(NamedTuple):
    """T rows, A of E routed and Sh shared experts, H inputs, I between."""

    t: int
    a: int
    e: int
    sh: int
    h: int
    i: int


class _Matrix(NamedTuple):
    """An expert weight as a kernel takes it; scales are the values where there are none."""

    values: Tensor
    scales: Tensor
    strides: tuple[int, int, int, int]
    fp8: bool


def grouped_experts_kernel(
    x: ExpertInputs,
    weights: ExpertWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `grouped_experts`."""
    (t, h), routing = x.x.shape, x.routing
    e, twice, _ = weights.w13.shape
    a, sh = routing.topk_ids.shape[1], weights.shared_w13.shape[0]
    sizes = _Sizes(t, a, e, sh, h, twice // 2)
    y = torch.empty_like(x.x) if out is None else out
    if t == 0:
        return y
    w13, shared_w13 = _matrix(weights.w13), _matrix(weights.shared_w13)
    w2, shared_w2 = _matrix(weights.w2), _matrix(weights.shared_w2)
    # A descriptor and a pointer need something behind them where no expert is.
    if e == 0:
        w13, w2 = shared_w13, shared_w2
    if sh == 0:
        shared_w13, shared_w2 = w13, w2
    decode, fp8 = regime(t) == "decode", w13.fp8 or shared_w13.fp8
    facts: dict[str, Any] = {"device": device_name(y.device), "fp8": fp8, "T": t}
    facts["R"] = t * a // e if e else t
    streams = decode or fp8
    up = choose("grouped_experts", "gate_up" if streams else "gate_up_prefill", **facts)
    work = routing.work
    if a and (work is None or not work.fits(x.x, routing.topk_ids, rows)):
        work = _listed(routing, sizes, rows, TILE_ROWS if decode else up["BLOCK_T"])
    lines, b = ((y, y, y), 0) if rows is None else (rows_on_device(rows), rows.num_lines)
    most = 0 if rows is None else padded(b)
    lists = (y, y, y) if work is None else (work.size, work.tiles, work.pairs)
    a_rows = x.x.new_empty(t * (a + sh), sizes.i)
    kept = torch.float32 if decode else y.dtype
    parts = torch.empty(t, a + sh, h, dtype=kept, device=y.device)
    args = (x, w13, w2, shared_w13, shared_w2, a_rows, parts, y, lists, sizes, facts)
    if streams:
        _stream(*args, up, lines, b, most, 0 if work is None else work.bound, combine=decode)
    else:
        _multiply(*args, up)
    if not decode:
        config = choose("grouped_experts", "combine", **facts)
        grid = (-(-t // config["BLOCK_T"]), -(-h // config["BLOCK_H"]))
        launch(
            kernel.combine_parts, grid, parts, y, *lines, t, y.stride(0), b, H=h, CHOICES=a + sh,
            LINES=most, pdl=True, **config,
        )  # fmt: skip
    return y


def _stream(
    x: ExpertInputs,
    w13: _Matrix,
    w2: _Matrix,
    shared_w13: _Matrix,
    shared_w2: _Matrix,
    a_rows: Tensor,
    parts: Tensor,
    y: Tensor,
    lists: tuple[Tensor, ...],
    s: _Sizes,
    facts: dict[str, Any],
    up: Config,
    lines: tuple[Tensor, ...],
    b: int,
    most: int,
    bound: int,
    combine: bool,
) -> None:
    """The launches that stream weights past the rows: of decode steps, and of 8-bit weights."""
    config = _fit(up, x.x, facts["fp8"])
    line = CACHE_LINE // w2.values.element_size()
    blocks = -(-s.t // config["BLOCK_SHARED_T"])
    tiles = -(-2 * s.i // config["BLOCK_N"])
    launch(
        kernel.gate_up_decode, ((s.sh * blocks + bound) * tiles,),
        x.x, _tiles_of(w13, config), w13.scales, _tiles_of(shared_w13, config), shared_w13.values,
        shared_w13.scales, a_rows, *lists, s.t, x.x.stride(0), *w13.strides[2:],
        *shared_w13.strides,
        H=s.h, INNER=s.i, A=s.a, SH=s.sh, FP8=w13.fp8, SHARED_FP8=shared_w13.fp8,
        # Whoever listed the experts had waited for x, and only then let this launch start.
        EARLY=s.a > 0, LINE=line, AHEAD=8, pdl=True, **config,
    )  # fmt: skip
    config = _fit(choose("grouped_experts", "down", **facts), x.x, facts["fp8"])
    blocks = -(-s.t // config["BLOCK_SHARED_T"])
    tiles = -(-s.h // config["BLOCK_N"])
    # A tile is on its way to L2 before its rows of a are there.
    inputs = s.i // 2 if facts["fp8"] else s.i
    ahead = padded(min(-(-inputs // line), config.pop("AHEAD")))
    if not combine:
        config["COMBINE_T"] = 0
    weights = x.routing.shared_weights
    launch(
        kernel.down_decode, ((s.sh * blocks + bound) * tiles,),
        a_rows, _tiles_of(w2, config), w2.values, w2.scales, _tiles_of(shared_w2, config),
        shared_w2.values, shared_w2.scales, parts, y,
        x.routing.topk_weights, weights, *lines, *lists,
        zeroed("grouped_experts", 1 << 12, y.device),
        s.t, *w2.strides, *shared_w2.strides, y.stride(0), *weights.stride(), b,
        H=s.h, INNER=s.i, A=s.a, SH=s.sh, FP8=w2.fp8, SHARED_FP8=shared_w2.fp8,
        LINE=line, AHEAD=ahead, LINES=most, pdl=True, **config,
    )  # fmt: skip


def _multiply(
    x: ExpertInputs,
    w13: _Matrix,
    w2: _Matrix,
    shared_w13: _Matrix,
    shared_w2: _Matrix,
    a_rows: Tensor,
    parts: Tensor,
    y: Tensor,
    lists: tuple[Tensor, ...],
    s: _Sizes,
    facts: dict[str, Any],
    up: Config,
) -> None:
    """The launches that multiply rows by weights, whole tiles of both: of prefill steps."""
    programs = num_sms(y.device)
    config = _fit(up, x.x)
    launch(
        kernel.gate_up_prefill, (programs * config.pop("PER_SM"),),
        x.x, _tiles_of(w13, config), _tiles_of(shared_w13, config), a_rows, *lists,
        s.t, x.x.stride(0), H=s.h, INNER=s.i, A=s.a, SH=s.sh, pdl=True, **config,
    )  # fmt: skip
    config = _fit(choose("grouped_experts", "down_prefill", **facts), x.x)
    launch(
        kernel.down_prefill, (programs * config.pop("PER_SM"),),
        a_rows, _tiles_of(w2, config), _tiles_of(shared_w2, config), parts,
        x.routing.topk_weights, x.routing.shared_weights, *lists, s.t,
        *x.routing.shared_weights.stride(),
        H=s.h, INNER=s.i, A=s.a, SH=s.sh, pdl=True, **config,
    )  # fmt: skip


def _listed(routing: Routing, s: _Sizes, rows: RowBatch | None, tile_rows: int) -> ExpertWork:
    """The list, made from ids that came without one."""
    ids = routing.topk_ids.contiguous()
    device = ids.device
    size = None if routing.room is None else routing.room.size
    work = ExpertWork(s.t, s.a, s.e, device, tile_rows, size)
    work.scratch = (ids,)
    pairs, bins = s.t * s.a, padded(s.e + 1)
    b = 0 if rows is None else rows.num_lines
    sizes: Config = {
        "E": s.e, "A": s.a, "BINS": bins, "TILE_ROWS": tile_rows,
        "LINES": 0 if rows is None else padded(rows.num_lines),
    }  # fmt: skip
    lines = (ids, ids, ids) if rows is None else rows_on_device(rows)
    if regime(s.t) == "decode":
        launch(
            kernel.list_pairs, (1,),
            ids, work.experts, *lines, work.size, work.tiles, work.pairs, pairs, b,
            CHUNK=128 if pairs > 32 else 32, pdl=True, **sizes,
        )  # fmt: skip
        return work
    spans = -(-pairs // SPAN)
    firsts = torch.empty(spans, bins, dtype=torch.int32, device=device)
    work.scratch += (firsts,)
    launch(
        kernel.count_pairs, (spans,),
        ids, work.experts, *lines, work.size, work.tiles, firsts,
        zeroed("grouped_experts.pairs", 1, device), pairs, b,
        SPAN=SPAN, CHUNK=256, ROWS=16, pdl=True, num_warps=8, **sizes,
    )  # fmt: skip
    launch(
        kernel.place_spans, (spans,), work.experts, firsts, work.pairs, pairs,
        E=s.e, BINS=bins, SPAN=SPAN, CHUNK=128, pdl=True,
    )  # fmt: skip
    return work


def _matrix(weight: Weight) -> _Matrix:
    values = weight.values if isinstance(weight, Quantized) else weight
    if values.stride(-1) != 1 and values.numel():
        raise ValueError(
            f"grouped_experts: the last axis of a weight must be dense, got strides "
            f"{values.stride()}; call contiguous() on it"
        )
    if not isinstance(weight, Quantized):
        return _Matrix(values, values, (values.stride(0), values.stride(1), 0, 0), False)
    # Two to an element, as a thread of the matrix unit takes them.
    values, scales = values.view(torch.int16), weight.scales.view(torch.uint8)
    strides = (values.stride(0), values.stride(1), scales.stride(0), scales.stride(1))
    return _Matrix(values, scales, strides, True)


def _tiles_of(weight: _Matrix, config: Config) -> TensorDescriptor:
    """A tile of an expert's weight a box."""
    values = weight.values
    inputs = config["BLOCK_K"] // (2 if weight.fp8 else 1)
    block = [1, config["BLOCK_N"], inputs]
    return TensorDescriptor(values, list(values.shape), list(values.stride()), block)


def _fit(config: Config, x: Tensor, fp8: bool = False) -> Config:
    """Half the depth for fp32, whose tiles are twice as large; scales need whole blocks. Tiles of
    few rows are as the others where nothing is said of them.
    """
    config.setdefault("FEW_T", config["BLOCK_T"])
    if x.element_size() == 4 and not fp8:
        config["BLOCK_K"] //= 2
    return config
