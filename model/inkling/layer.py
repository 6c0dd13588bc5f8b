"""One layer of the trunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from microturn.kernels.arena import ArenaSpec, Ring
from microturn.kernels.conv_residual_norm import (
    ConvResidualNormWeights,
    Stream,
    SubBlock,
    conv_residual_norm,
)
from microturn.kernels.qkvr_prologue import QKVRState
from microturn.kernels.rms_norm import RMSNormWeights
from microturn.kernels.router import Routing
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv import short_conv_spec
from microturn.model.family import ArenaSet
from microturn.model.inkling.attention import Attention
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.mlp import DenseMLP, ExpertsMLP
from microturn.model.inkling.norm import RMSNorm


@dataclass(frozen=True)
class LayerState:
    """attn_conv, mlp_conv: raw inputs of the two convolutions on the residual stream."""

    attn: QKVRState
    attn_conv: Ring
    mlp_conv: Ring


class Layer(nn.Module):
    """h = x + attn_conv(attn(attn_norm(x))); h + mlp_conv(mlp(mlp_norm(h))) (spec/inkling.md 1.2).

    A short convolution adds its own input as well, so a sub-block is added twice, as intended.
    A norm is done where the sum before it is made: the trunk norms for the first layer, a layer for
    the one after it.
    """

    def __init__(self, config: TrunkConfig, layer: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.attn_norm = RMSNorm(hidden, config.eps)
        self.attn = Attention(config, layer)
        self.attn_conv = nn.Parameter(torch.empty(hidden, config.conv_kernel))
        self.mlp_norm = RMSNorm(hidden, config.eps)
        self.mlp: DenseMLP | ExpertsMLP = (
            DenseMLP(config) if layer < config.num_dense_layers else ExpertsMLP(config)
        )
        self.mlp_conv = nn.Parameter(torch.empty(hidden, config.conv_kernel))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Outputs of all sub-blocks together add about unit variance to the residual stream."""
        output_gain = (2 * self.config.num_layers) ** -0.5
        self.attn_norm.reset_parameters()
        self.mlp_norm.reset_parameters()
        self.attn.reset_parameters(generator, output_gain)
        self.mlp.reset_parameters(generator, output_gain)
        with torch.no_grad():
            self.attn_conv.normal_(0, 0.05, generator=generator)
            self.mlp_conv.normal_(0, 0.05, generator=generator)

    def arena_specs(self, prefix: str, cursor: str) -> tuple[ArenaSpec, ...]:
        config = self.config
        residual = (
            short_conv_spec(
                f"{prefix}.{name}",
                config.hidden_size,
                config.conv_kernel,
                config.max_rows_per_tick,
                cursor,
            )
            for name in ("attn_conv", "mlp_conv")
        )
        return (*self.attn.arena_specs(prefix, cursor), *residual)

    def bind(self, arenas: ArenaSet, prefix: str) -> LayerState:
        attn_conv, mlp_conv = (arenas.view(f"{prefix}.{n}") for n in ("attn_conv", "mlp_conv"))
        assert isinstance(attn_conv, Ring) and isinstance(mlp_conv, Ring)
        return LayerState(self.attn.bind(arenas, prefix), attn_conv, mlp_conv)

    def forward(
        self,
        x: Stream,
        state: LayerState | None,
        rows: RowBatch,
        next_norm: RMSNormWeights,
        chosen: list[Routing] | None = None,
    ) -> Stream:
        """x [T, H], its normed part by attn_norm -> [T, H], its normed part by next_norm. chosen:
        see Trunk.forward.
        """
        attn, attn_conv, mlp_conv = (
            (None, None, None) if state is None else (state.attn, state.attn_conv, state.mlp_conv)
        )
        to_mlp = ConvResidualNormWeights(self.attn_conv, self.mlp_norm.weights)
        y = SubBlock(self.attn(x.normed, attn, rows), x.h)
        x = conv_residual_norm(y, to_mlp, attn_conv, rows)
        to_next = ConvResidualNormWeights(self.mlp_conv, next_norm)
        y = SubBlock(self.mlp(x.normed, rows, chosen), x.h)
        return conv_residual_norm(y, to_next, mlp_conv, rows)
