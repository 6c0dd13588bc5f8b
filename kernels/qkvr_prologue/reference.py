"""qkvr_prologue in plain torch: short_conv and rms_norm, and the write to the arenas."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microturn.kernels.arena import Ring
from microturn.kernels.rms_norm.reference import RMSNormWeights
from microturn.kernels.rms_norm.reference import core as rms_norm
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.reference import core as short_conv
from microturn.kernels.short_conv.reference import short_conv_reference
from microturn.kernels.streaming_attention import AttentionInputs, KVState
from microturn.kernels.streaming_attention.reference import write_kv


@dataclass(frozen=True)
class QKVRWeights:
    """taps [2 * Hkv * D, K]: of the k channels, then of the v channels; gains [D] of q and k.

    d_rel: values of r a head
    """

    taps: Tensor
    q_norm: RMSNormWeights
    k_norm: RMSNormWeights
    num_heads: int
    num_kv_heads: int
    d_rel: int

    @property
    def head_dim(self) -> int:
        return int(self.q_norm.gain.shape[0])

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of q, of k and v together, of r."""
        head_dim = self.head_dim
        return (
            self.num_heads * head_dim,
            2 * self.num_kv_heads * head_dim,
            self.num_heads * self.d_rel,
        )


@dataclass(frozen=True)
class QKVRState:
    """kv: past keys and values; conv: raw inputs of the k and v convolutions, side by side."""

    kv: KVState
    conv: Ring


def _heads(q: Tensor, kv: Tensor, r: Tensor, weights: QKVRWeights) -> AttentionInputs:
    """kv convolved already."""
    lead, kv_heads = q.shape[:-1], weights.num_kv_heads
    k, v = kv.view(*lead, 2, kv_heads, weights.head_dim).unbind(-3)
    return AttentionInputs(
        rms_norm(q.view(*lead, weights.num_heads, weights.head_dim), weights.q_norm),
        rms_norm(k, weights.k_norm),
        v,
        r.view(*lead, weights.num_heads, weights.d_rel) if weights.d_rel else None,
    )


def core(x: Tensor, weights: QKVRWeights) -> AttentionInputs:
    """x [..., T, q + k + v + r] from position 0 on."""
    q, kv, r = x.split_with_sizes(list(weights.widths), dim=-1)
    return _heads(q, short_conv(kv, weights.taps), r, weights)


def qkvr_prologue_reference(
    x: Tensor,
    weights: QKVRWeights,
    state: QKVRState | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> AttentionInputs:
    """See `qkvr_prologue`."""
    q, kv, r = x.split_with_sizes(list(weights.widths), dim=-1)
    kv = short_conv_reference(kv, weights.taps, None if state is None else state.conv, rows)
    made = _heads(q, kv, r, weights)
    q = made.q if out is None else out.copy_(made.q)
    if state is None:
        return AttentionInputs(q, made.k, made.v, made.r)
    assert made.k is not None and made.v is not None
    with torch.no_grad():
        write_kv(made.k, made.v, state.kv, rows)
    return AttentionInputs(q, None, None, made.r)
