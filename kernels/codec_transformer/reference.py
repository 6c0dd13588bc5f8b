"""codec_transformer in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.linear import linear
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention import (
    AttentionInputs,
    AttentionWeights,
    KVState,
    streaming_attention,
)


@dataclass(frozen=True)
class CodecLayerWeights:
    """One layer: norm gains and biases [D], layer scales [D], in_proj [3 D, D] (rows q, k, v, each
    head-major), out_proj [D, D], ff_in [F, D], ff_out [D, F].
    """

    norm1_gain: Tensor
    norm1_bias: Tensor
    in_proj: Tensor
    out_proj: Tensor
    scale1: Tensor
    norm2_gain: Tensor
    norm2_bias: Tensor
    ff_in: Tensor
    ff_out: Tensor
    scale2: Tensor


@dataclass(frozen=True)
class CodecTransformerWeights:
    """window: keys a row sees, itself included; eps is added to the variance."""

    layers: tuple[CodecLayerWeights, ...]
    num_heads: int
    window: int
    rope_theta: float = 10000.0
    eps: float = 1e-5


def core(
    x: Tensor,
    weights: CodecTransformerWeights,
    state: Sequence[KVState] | None,
    rows: RowBatch,
) -> Tensor:
    """x [T, D] -> [T, D]; what rows of lines that do not run hold is undefined."""
    width = x.shape[1]
    head_dim = width // weights.num_heads
    attention = AttentionWeights(
        window=weights.window, scale=head_dim**-0.5, rope_theta=weights.rope_theta
    )
    for i, layer in enumerate(weights.layers):
        normed = F.layer_norm(x, (width,), layer.norm1_gain, layer.norm1_bias, weights.eps)
        q, k, v = linear(normed, layer.in_proj).view(-1, 3, weights.num_heads, head_dim).unbind(1)
        heard = streaming_attention(
            AttentionInputs(q, k, v), attention, None if state is None else state[i], rows
        )
        x = x + layer.scale1 * linear(heard.reshape(-1, width), layer.out_proj)
        normed = F.layer_norm(x, (width,), layer.norm2_gain, layer.norm2_bias, weights.eps)
        x = x + layer.scale2 * linear(F.gelu(linear(normed, layer.ff_in)), layer.ff_out)
    return x


def codec_transformer_reference(
    x: Tensor,
    weights: CodecTransformerWeights,
    state: Sequence[KVState] | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `codec_transformer`."""
    if rows is None:
        rows = RowBatch.build([0], [int(x.shape[0])], [0], device=x.device)
    y = core(x, weights, state, rows)
    if rows.line_length is None:
        y = torch.zeros_like(y).index_copy(0, rows.run_rows, y[rows.run_rows])
    return y if out is None else out.copy_(y)
