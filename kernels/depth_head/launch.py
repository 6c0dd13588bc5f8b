"""Launches the kernel of depth_head.

One block on every multiprocessor, about 1.3 GB of weights a frame, and a barrier between stages
because a row's every value feeds every value of the next stage. So what is tuned is the number of
barriers and what lies between two of them:

* norms are divisions after the product (see kernel.py): four stages a layer, five above two rows,
  where attending in every program anew would cost more than a barrier
* the weights of stages ahead are asked into L2 before a stage starts, so that memory is busy while
  programs wait, and a stage reads them at the speed of L2
* tiles of 64 weights feed wgmma for any number of rows; sums into the residual take 16 or 32, on
  mma.sync, so that 64 programs have work where only D outputs are left. A stage never changes the
  instruction with the number of rows, and so keeps its bits
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from microturn.kernels.configs import choose
from microturn.kernels.depth_head import kernel as stages
from microturn.kernels.depth_head.kernel import depth_head_frame
from microturn.kernels.depth_head.reference import DepthInputs, DepthOutputs
from microturn.kernels.depth_head.weights import DepthWeights
from microturn.kernels.launch import device_name, interpreted, launch, num_sms, zeroed
from microturn.kernels.rows import RowBatch

VALUES = 4096
"""Keys that a program attending for one row holds in registers, 32 a thread."""


def depth_head_kernel(
    x: DepthInputs,
    weights: DepthWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: DepthOutputs | None = None,
) -> DepthOutputs:
    """See `depth_head`. Raises ValueError on a head width that is no power of two from 16 on."""
    direct = out is not None and out.codes.is_contiguous() and out.finite.is_contiguous()
    made, _ = with_logits(x, weights, rows, out if direct else None)
    if out is None or direct:
        return made
    return DepthOutputs(out.codes.copy_(made.codes), out.finite.copy_(made.finite))


def with_logits(
    x: DepthInputs,
    weights: DepthWeights,
    rows: RowBatch | None = None,
    out: DepthOutputs | None = None,
) -> tuple[DepthOutputs, Tensor]:
    """The frame, in `out` where that is given (contiguous), and the logits it was drawn from:
    [B, Q, V] fp32.
    """
    w, batch, device = weights, x.hidden.shape[0], x.hidden.device
    layers, books, size = w.down.shape[0], w.num_codebooks, w.codebook_size
    depth, gate = w.down.shape[2], w.down.shape[3]
    head_dim = depth // w.num_heads
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise ValueError(
            f"depth_head: the kernel wants heads of 16, 32, 64, ... values, got {head_dim}"
        )
    config = choose("depth_head", device=device_name(device), B=batch)
    programs = num_sms(device)
    steps = triton.next_power_of_2(books)
    heads = triton.next_power_of_2(w.num_heads)

    def empty(*shape: int, dtype: torch.dtype = x.hidden.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    made = out or DepthOutputs(
        empty(batch, books, dtype=torch.int64), empty(batch, dtype=torch.bool)
    )
    logits = empty(batch, books, size, dtype=torch.float32)
    if batch == 0:
        return made, logits
    hidden = x.hidden if x.hidden.stride(1) == 1 else x.hidden.contiguous()
    arguments = (
        hidden,
        x.text_ids,
        x.sampling.temperature,
        x.sampling.top_k,
        x.sampling.seed,
        x.sampling.step,
        x.text_ids if rows is None else rows.slot_ids,
        x.text_ids if rows is None else rows.exec_mask.view(torch.uint8),
        w.hidden_in,
        w.text_table,
        w.code_tables,
        w.attention_gain,
        w.qkv,
        w.out,
        w.mlp_gain,
        w.gate_up,
        w.down,
        w.heads,
        empty(batch, books, depth),
        empty(batch, depth),
        empty(batch, depth),
        empty(depth // 16, batch, dtype=torch.float32),
        empty(layers, books, batch, 3 * depth),
        empty(programs if config["FUSED"] else 1, batch, depth),
        empty(batch, gate),
        logits,
        made.codes,
        made.finite.view(torch.uint8),
        zeroed("depth_head", 1, device),
        batch,
        w.text_table.shape[0],
        hidden.stride(0),
        w.eps,
        head_dim**-0.5,
    )
    options = config | {
        "H": w.hidden_size,
        "D": depth,
        "L": layers,
        "Q": books,
        "G": gate,
        "V": size,
        "HEADS": w.num_heads,
        "HEAD_GROUP": min(heads, max(1, VALUES // (steps * head_dim))),
        "STEPS": steps,
        "POW_D": triton.next_power_of_2(depth),
        "POW_V": triton.next_power_of_2(size),
        "POW_GROUPS": max(16, triton.next_power_of_2(depth // 16)),
        "HAS_ROWS": rows is not None,
    }
    if interpreted():
        _one_by_one(programs, arguments, options)
    else:
        launch(
            depth_head_frame,
            (programs,),
            *arguments,
            0,
            books,
            0,
            layers,
            STAGE=stages.ALL,
            PREFETCH=True,
            barriers=1 + books * (num_stages(config) * layers + 2),
            launch_cooperative_grid=True,
            **options,
        )
    return made, logits


def num_stages(config: dict[str, Any]) -> int:
    """Of a layer."""
    return 4 if config["FUSED"] else 5


def _one_by_one(programs: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The stages as launches of their own."""

    def run(stage: Any, step: int = 0, layers: tuple[int, int] = (0, 0), steps: int = 1) -> None:
        launch(
            depth_head_frame,
            (programs,),
            *arguments,
            step,
            step + steps,
            *layers,
            STAGE=stage,
            PREFETCH=False,
            **options,
        )

    of_a_layer = [stages.QKV, stages.ATTEND, stages.OUT, stages.GATE, stages.DOWN]
    if options["FUSED"]:
        of_a_layer.remove(stages.ATTEND)
    run(stages.HIDDEN, steps=0)
    run(stages.EMBED, steps=0)
    for step in range(options["Q"]):
        for layer in range(options["L"]):
            for stage in of_a_layer:
                run(stage, step, (layer, layer + 1))
        run(stages.HEAD, step)
        run(stages.DRAW, step)
