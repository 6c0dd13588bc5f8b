"""The ops of a decode. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from microturn.kernels.causal_conv.cases import ConvCase
from microturn.kernels.codec_transformer.cases import CodecTransformerCase
from microturn.kernels.conv_transpose.cases import ConvTransposeCase
from microturn.kernels.registry import Case
from microturn.kernels.residual_unit.cases import ResidualUnitCase
from microturn.kernels.rvq_dequantize.cases import DequantizeCase

if TYPE_CHECKING:
    from microturn.model.mimi.config import MimiConfig


def decode_calls(
    config: MimiConfig, lines: int, frames: int, position: int, reason: str
) -> Iterator[tuple[str, Case]]:
    """Every op that turns `frames` frames of each of so many lines into audio; position: latents
    that came before.
    """
    c, rows, channels = config, frames, config.n_filters << len(config.ratios)
    books = (c.num_codebooks, c.num_codebooks, c.codebook_size, c.codebook_dim)
    yield "rvq_dequantize", DequantizeCase(lines * frames, *books, c.dim, reason)
    step = c.resample_stride
    up = ConvTransposeCase(lines, rows, c.dim, c.dim, 2 * step, step, reason, depthwise=True)
    yield "conv_transpose", up
    rows *= step
    yield (
        "codec_transformer",
        CodecTransformerCase(
            lines,
            rows,
            position,
            c.num_layers,
            c.dim,
            c.num_heads,
            c.ff_dim,
            c.context,
            reason,
        ),
    )
    yield "causal_conv", ConvCase(lines, rows, c.dim, channels, c.kernel_size, 1, reason)
    for ratio in c.ratios:
        half = channels // 2
        case = ConvTransposeCase(lines, rows, channels, half, 2 * ratio, ratio, reason)
        yield "conv_transpose", case
        rows, channels = rows * ratio, half
        inner = channels // c.compress
        unit = ResidualUnitCase(lines, rows, channels, inner, c.residual_kernel_size, reason)
        yield "residual_unit", unit
    yield "causal_conv", ConvCase(lines, rows, channels, 1, c.last_kernel_size, 1, reason)
