"""Attention of one layer, between its two projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microturn.kernels.arena import ArenaSpec, Pages, Ring
from microturn.kernels.linear import linear
from microturn.kernels.qkvr_prologue import QKVRState, QKVRWeights, qkvr_prologue
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv import short_conv_spec
from microturn.kernels.streaming_attention import (
    AttentionWeights,
    KVState,
    kv_specs,
    streaming_attention,
)
from microturn.model.family import ArenaSet
from microturn.model.inkling.config import AttentionConfig, TrunkConfig
from microturn.model.inkling.norm import RMSNorm


class Attention(nn.Module):
    """spec/inkling.md 1.2.

    qkvr     [q + k + v + r, H]: all heads of q, of k, of v, then of r (d_rel a head)
    kv_conv  [k + v, K]: the taps of the k channels, then of the v channels
    rel_bank [d_rel, extent]
    o        [H, q]
    """

    def __init__(self, config: TrunkConfig, layer: int) -> None:
        super().__init__()
        self.sizes: AttentionConfig = config.attention(layer)
        hidden, sizes = config.hidden_size, self.sizes
        q = sizes.num_heads * sizes.head_dim
        kv = 2 * sizes.num_kv_heads * sizes.head_dim
        self.widths = [q, kv, sizes.num_heads * config.d_rel]
        self.config = config
        self.qkvr = nn.Parameter(torch.empty(sum(self.widths), hidden))
        self.kv_conv = nn.Parameter(torch.empty(kv, config.conv_kernel))
        self.q_norm = RMSNorm(sizes.head_dim, config.eps)
        self.k_norm = RMSNorm(sizes.head_dim, config.eps)
        self.rel_bank = nn.Parameter(torch.empty(config.d_rel, sizes.extent))
        self.o = nn.Parameter(torch.empty(hidden, q))

    def reset_parameters(self, generator: torch.Generator, output_gain: float) -> None:
        hidden, head_dim = self.config.hidden_size, self.sizes.head_dim
        with torch.no_grad():
            self.qkvr.normal_(0, hidden**-0.5, generator=generator)
            self.kv_conv.normal_(0, 0.05, generator=generator)
            self.rel_bank.normal_(0, 0.05, generator=generator)
            self.o.normal_(0, output_gain * self.widths[0] ** -0.5, generator=generator)
        # With these gains q . k / head_dim has unit variance for random q and k.
        self.q_norm.reset_parameters(head_dim**0.25)
        self.k_norm.reset_parameters(head_dim**0.25)

    def arena_specs(self, prefix: str, cursor: str) -> tuple[ArenaSpec, ...]:
        sizes, rows = self.sizes, self.config.max_rows_per_tick
        return (
            *kv_specs(
                f"{prefix}.kv",
                kind="pages" if sizes.pages else "ring",
                window=sizes.window,
                max_rows_per_tick=rows,
                num_kv_heads=sizes.num_kv_heads,
                head_dim=sizes.head_dim,
                cursor=cursor,
                num_sink_tokens=sizes.num_sink_tokens,
            ),
            short_conv_spec(
                f"{prefix}.kv_conv", self.widths[1], self.config.conv_kernel, rows, cursor
            ),
        )

    def bind(self, arenas: ArenaSet, prefix: str) -> QKVRState:
        k, v = arenas.view(f"{prefix}.kv.k"), arenas.view(f"{prefix}.kv.v")
        conv = arenas.view(f"{prefix}.kv_conv")
        assert isinstance(k, Ring | Pages) and isinstance(v, Ring | Pages)
        assert isinstance(conv, Ring)
        return QKVRState(KVState(k, v), conv)

    def forward(self, x: Tensor, state: QKVRState | None, rows: RowBatch) -> Tensor:
        """x [T, H], normed -> [T, H]."""
        sizes = self.sizes
        prologue = QKVRWeights(
            self.kv_conv,
            self.q_norm.weights,
            self.k_norm.weights,
            sizes.num_heads,
            sizes.num_kv_heads,
            self.config.d_rel,
        )
        weights = AttentionWeights(
            window=sizes.window,
            scale=1 / sizes.head_dim,
            rel_bank=self.rel_bank,
            log_floor=sizes.log_floor,
            log_alpha=sizes.log_alpha,
            num_sink_tokens=sizes.num_sink_tokens,
        )
        inputs = qkvr_prologue(linear(x, self.qkvr), prologue, state, rows)
        y = streaming_attention(inputs, weights, None if state is None else state.kv, rows)
        return linear(y.flatten(1), self.o)
