"""codec_transformer: the public function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from microturn.kernels.checks import check_dtype, check_rows, check_shape
from microturn.kernels.codec_transformer.reference import (
    CodecLayerWeights,
    CodecTransformerWeights,
    codec_transformer_reference,
)
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention import KVState

__all__ = ["CodecLayerWeights", "CodecTransformerWeights", "codec_transformer"]


def codec_transformer(
    x: Tensor,
    weights: CodecTransformerWeights,
    state: Sequence[KVState] | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """For each layer: x += scale1 * attention(norm1(x)), then x += scale2 * ff_out @ gelu(ff_in @
    norm2(x)).

    norm is LayerNorm with gain and bias, gelu the exact one; attention is causal over `window` keys
    with interleaved rotary embedding and scale 1 / sqrt(D / num_heads); no other biases, no norm
    after the last layer.

    x     [T, D] fp32, bf16 on a GPU, packed lines; weights alike
    state a KVState for each layer, positions at the rate of x; None: whole sequences,
          differentiable
    rows  at the rate of x; None only without state: x is one whole sequence
    out   [T, D]; allocated when None. Rows of lines that do not run are zeros

    Source: spec/moshi-mimi.md 3.1. Raises ValueError on shapes and when layers and states differ in
    number, TypeError on dtypes.
    """
    op = "codec_transformer"
    check_shape(op, "x", x, ("T", "D"))
    width = int(x.shape[1])
    if width % weights.num_heads:
        raise ValueError(f"{op}: width {width} does not divide into {weights.num_heads} heads")
    for i, layer in enumerate(weights.layers):
        check_shape(op, f"layers[{i}].in_proj", layer.in_proj, (3 * width, width))
        check_dtype(op, f"layers[{i}].in_proj", layer.in_proj, x.dtype)
    if rows is not None:
        check_rows(op, rows, int(x.shape[0]))
    if state is not None:
        if rows is None:
            raise ValueError(f"{op}: state needs rows, to say which slots the input belongs to")
        if len(state) != len(weights.layers):
            raise ValueError(
                f"{op}: {len(weights.layers)} layers want as many states, got {len(state)}"
            )
    return pick(op, x.device, codec_transformer_reference)(x, weights, state, rows, out=out)
