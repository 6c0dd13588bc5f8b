"""depth_head: the public function."""

from __future__ import annotations

import torch

from microturn.kernels.checks import check_dtype, check_rows, check_shape
from microturn.kernels.depth_head.reference import (
    DepthInputs,
    DepthOutputs,
    depth_head_reference,
)
from microturn.kernels.depth_head.weights import DepthWeights
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling.op import check_params

__all__ = ["DepthInputs", "DepthOutputs", "DepthWeights", "depth_head"]


def depth_head(
    x: DepthInputs,
    weights: DepthWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: DepthOutputs | None = None,
) -> DepthOutputs:
    """codes[b, k] drawn from heads[k] @ transformer(in_k(hidden[b]) + table_k[previous id]).

    A causal transformer over the Q codebooks of one frame. Step 0 looks up the text id, step k the
    code drawn at k - 1. Layers: y += out(attention(norm(y))); y += down(silu(gate) * up), both of
    norm(y). Every step has its own matrices; the norms are shared. A step attends to all steps of
    its frame so far, with scale 1 / sqrt(head width), no position embedding and no window; no norm
    stands before the head. Nothing is kept between frames.

    x     hidden [B, H] fp32, bf16 on a GPU (the trunk's, after its final norm), text_ids [B]
          int64, and SamplingParams, each [B]; codebook q draws from stream 1 + q whatever its
          stream says
    weights DepthWeights, dtype of hidden; logits and draws are fp32
    state unused; the signature is the same for every op
    rows  None, or B lines of one row: one that does not run gets zero codes and finite = True
    out   DepthOutputs: codes [B, Q] int64, finite [B] bool; allocated when None

    A row depends on nothing but itself, and a row that is not finite draws code 0 and says so.
    Source: spec/interaction.md 1; spec/moshi-mimi.md 3.2 (depformer).
    Raises ValueError on shapes, TypeError on dtypes, IndexError on a text id outside its table
    (on a CPU; a GPU takes the nearest row, since only the device knows the id).
    """
    batch = x.hidden.shape[0]
    check_shape("depth_head", "hidden", x.hidden, ("B", weights.hidden_size))
    check_dtype("depth_head", "hidden", x.hidden, weights.hidden_in.dtype)
    check_shape("depth_head", "text_ids", x.text_ids, (batch,))
    check_dtype("depth_head", "text_ids", x.text_ids, torch.int64)
    check_params("depth_head", x.sampling, batch)
    if rows is not None:
        check_rows("depth_head", rows, batch)
    return pick("depth_head", x.hidden.device, depth_head_reference)(
        x, weights, state, rows, out=out
    )
