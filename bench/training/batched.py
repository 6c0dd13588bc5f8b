"""The codec over a batch of recordings of one length, channels first: what trains.

The same parameters and arithmetic as `MimiEncoder.latents` and `MimiDecoder.decode_latents` (a test
compares them). Those lay windows out for one matmul, so that bits do not depend on the rows beside
them; training claims no bits, and torch's convolutions are several times as fast.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.streaming_attention.reference import AttentionWeights, core
from microturn.model.mimi import MimiDecoder, MimiEncoder
from microturn.model.mimi.layers import Conv, ConvTranspose, ResidualUnit, Transformer


def encode(encoder: MimiEncoder, audio: Tensor) -> Tensor:
    """audio [N, L * frame_size] -> latents [N, L, dim] before the quantiser."""
    x = _conv(encoder.first, audio[:, None])
    for _, unit, down in encoder._levels:
        x = _conv(down, _unit(unit, x))
    x = _conv(encoder.last, x)
    x = _transformer(encoder.transformer, x.transpose(1, 2)).transpose(1, 2)
    return _conv(encoder.downsample, x).transpose(1, 2)


def decode(decoder: MimiDecoder, latents: Tensor) -> Tensor:
    """latents [N, L, dim] -> audio [N, L * frame_size]."""
    x = _conv_transpose(decoder.upsample, latents.transpose(1, 2))
    x = _transformer(decoder.transformer, x.transpose(1, 2)).transpose(1, 2)
    x = _conv(decoder.first, x)
    for _, up, unit in decoder._levels:
        x = _unit(unit, _conv_transpose(up, x))
    return _conv(decoder.last, x)[:, 0]


def _conv(conv: Conv, x: Tensor) -> Tensor:
    history = conv.weights.history
    if conv.elu:
        x = F.elu(x)
    if history:
        x = F.pad(x, (history, 0), mode="replicate" if conv.pad == "replicate" else "constant")
    return F.conv1d(x, conv.weight.permute(0, 2, 1), conv.bias, conv.stride)


def _conv_transpose(conv: ConvTranspose, x: Tensor) -> Tensor:
    if conv.elu:
        x = F.elu(x)
    if conv.weight.dim() == 2:
        weight, groups = conv.weight.T[:, None], x.shape[1]
    else:
        weight, groups = conv.weight.permute(2, 1, 0), 1
    y = F.conv_transpose1d(x, weight, conv.bias, conv.stride, groups=groups)
    return y[..., : x.shape[-1] * conv.stride]


def _unit(unit: ResidualUnit, x: Tensor) -> Tensor:
    return x + _conv(unit.outer, _conv(unit.inner, x))


def _transformer(transformer: Transformer, x: Tensor) -> Tensor:
    """x [N, T, D], T at most the window."""
    weights = transformer.weights
    width = x.shape[-1]
    head_dim = width // weights.num_heads
    attention = AttentionWeights(
        window=weights.window, scale=head_dim**-0.5, rope_theta=weights.rope_theta
    )
    for layer in weights.layers:
        normed = F.layer_norm(x, (width,), layer.norm1_gain, layer.norm1_bias, weights.eps)
        qkv = F.linear(normed, layer.in_proj).view(*x.shape[:-1], 3, weights.num_heads, head_dim)
        q, k, v = qkv.unbind(-3)
        heard = core(q, k, v, None, attention)
        x = x + layer.scale1 * F.linear(heard.flatten(-2), layer.out_proj)
        normed = F.layer_norm(x, (width,), layer.norm2_gain, layer.norm2_bias, weights.eps)
        x = x + layer.scale2 * F.linear(F.gelu(F.linear(normed, layer.ff_in)), layer.ff_out)
    return x
