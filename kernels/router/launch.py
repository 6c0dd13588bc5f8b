"""Launches the kernel of router."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.configs import choose
from microturn.kernels.launch import device_name, launch, zeroed
from microturn.kernels.router.kernel import route
from microturn.kernels.router.reference import RouterWeights, Routing
from microturn.kernels.router.work import (
    DECODE_ROWS,
    TILE_ROWS,
    ExpertWork,
    Room,
    padded,
    rows_on_device,
)
from microturn.kernels.rows import RowBatch

CHUNK = 512
"""Inputs whose products are summed apart; a logit is the sum of its chunks, first to last."""


def router_kernel(
    x: Tensor,
    weights: RouterWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Routing | None = None,
) -> Routing:
    """See `router`. Up to DECODE_ROWS rows, the result carries the list of experts hit; from there
    on, room for its size.
    """
    (t, h), e, a, sh = x.shape, weights.num_experts, weights.top_k, weights.num_shared
    n = e + sh
    listed = t <= DECODE_ROWS
    config = choose("router", device=device_name(x.device), T=t)
    if x.element_size() == 4:
        config["BLOCK_K"] //= 2
    across = config.pop("ACROSS")
    split = -(-h // CHUNK) if across else 1
    parts = torch.empty(split, t, n, dtype=torch.float32, device=x.device)
    if out is None:
        ids = torch.empty(t, a, dtype=torch.int32, device=x.device)
        chosen = torch.empty(t, a, dtype=torch.float32, device=x.device)
        shared = torch.empty(t, sh, dtype=torch.float32, device=x.device)
    else:
        ids, chosen, shared = out.topk_ids, out.topk_weights, out.shared_weights
        if not all(v.is_contiguous() for v in (ids, chosen, shared)):
            raise ValueError("router: out must be contiguous on a GPU; write into a fresh Routing")
    work = ExpertWork(t, a, e, x.device) if listed else None
    lists = (ids,) * 4
    if work is not None:
        work.scratch = (parts,)
        lists = (work.experts, work.size, work.tiles, work.pairs)
    scale, factor = weights.scale, 1.0
    if not isinstance(scale, Tensor):
        scale, factor = _one(x.device), float(scale)
    lines = (ids, ids, ids) if rows is None else rows_on_device(rows)
    blocks = -(-t // config["BLOCK_T"])
    launch(
        route,
        (-(-n // config["BLOCK_N"]) * split, blocks),
        x,
        weights.weight,
        weights.bias,
        scale,
        ids,
        chosen,
        shared,
        parts,
        zeroed("router", 1 << 16, x.device),
        *lists,
        *lines,
        factor,
        t,
        0 if rows is None else rows.num_lines,
        x.stride(0),
        H=h,
        E=e,
        SH=sh,
        A=a,
        LISTED=listed,
        LINES=0 if rows is None else padded(rows.num_lines),
        E_PAD=padded(e),
        A_PAD=padded(a),
        SH_PAD=padded(sh),
        BINS=padded(e + 1),
        TILE_ROWS=TILE_ROWS,
        LIST_CHUNK=128 if t * a > 32 else 32,
        CHUNK=CHUNK,
        LINE=128 // weights.weight.element_size(),
        SPLIT=split,
        pdl=True,
        **config,
    )
    if out is not None:
        return out
    if work is not None:
        work.made_of(x, ids, rows)
    return Routing(ids, chosen, shared, work, None if listed else Room(x.device))


_ones: dict[torch.device, Tensor] = {}


def _one(device: torch.device) -> Tensor:
    """[1] fp32 of one."""
    if device not in _ones:
        _ones[device] = torch.ones(1, device=device)
    return _ones[device]
