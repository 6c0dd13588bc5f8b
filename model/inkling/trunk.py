"""The Inkling backbone, from rows of embeddings to text logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microturn.kernels.arena import ArenaSpec
from microturn.kernels.conv_residual_norm import Stream
from microturn.kernels.linear import linear
from microturn.kernels.router import Routing
from microturn.kernels.rows import RowBatch
from microturn.model.family import ArenaSet
from microturn.model.inkling.audio import AudioTower
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.layer import Layer, LayerState
from microturn.model.inkling.norm import RMSNorm

__all__ = ["AudioTower", "Trunk", "TrunkState"]

CURSOR = "rows"
"""The counter that positions all state of a trunk: rows of the interleaved sequence."""


@dataclass(frozen=True)
class TrunkState:
    """Views of the arenas that `Trunk.arena_specs` declares."""

    layers: tuple[LayerState, ...]


class Trunk(nn.Module):
    """spec/inkling.md 1.2. embedding and unembedding [vocab_size, H] are two tensors."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.embed_norm = RMSNorm(config.hidden_size, config.eps)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.eps)
        self.unembedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Seeded random weights of the scale training starts from: logits have unit variance."""
        config = self.config
        with torch.no_grad():
            self.embedding.normal_(generator=generator)
            self.unembedding.normal_(
                0, config.mup_multiplier * config.hidden_size**-0.5, generator=generator
            )
        self.embed_norm.reset_parameters()
        self.norm.reset_parameters()
        for layer in self._layers:
            layer.reset_parameters(generator)

    @property
    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def arena_specs(self, prefix: str) -> tuple[ArenaSpec, ...]:
        """The state of a session: every arena under `prefix`, positioned by the cursor "rows"."""
        return tuple(
            spec
            for i, layer in enumerate(self._layers)
            for spec in layer.arena_specs(f"{prefix}.{i}", CURSOR)
        )

    def bind(self, arenas: ArenaSet, prefix: str) -> TrunkState:
        """The views of one set of arenas, looked up once."""
        return TrunkState(
            tuple(layer.bind(arenas, f"{prefix}.{i}") for i, layer in enumerate(self._layers))
        )

    def embed(self, ids: Tensor) -> Tensor:
        """ids [T] int64 -> [T, H], normed; other kinds of rows take their place after this norm."""
        return self.embed_norm(F.embedding(ids, self.embedding))  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        state: TrunkState | None,
        rows: RowBatch,
        chosen: list[Routing] | None = None,
    ) -> Tensor:
        """x [T, H], rows as `embed` gives them -> [T, H], normed by the final norm.

        state None: every line is a whole sequence with nothing before it; differentiable. Rows of
        lines that do not run come back as their own embedding, normed. chosen: what each
        layer's router decided is appended to it.
        """
        layers = self._layers
        states = [None] * len(layers) if state is None else state.layers
        norms = [*(layer.attn_norm for layer in layers), self.norm]
        stream = Stream(x, norms[0](x))
        for layer, layer_state, norm in zip(layers, states, norms[1:], strict=True):
            stream = layer(stream, layer_state, rows, norm.weights, chosen)
        return stream.normed

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H], as `forward` gives it -> [R, unpadded_vocab_size] fp32."""
        config = self.config
        scaled, out = hidden / config.mup_multiplier, None
        if hidden.dtype != torch.float32 and not torch.is_grad_enabled():  # no rounding at the end
            out = hidden.new_empty(len(hidden), config.vocab_size, dtype=torch.float32)
        logits = linear(scaled, self.unembedding, out=out)
        return logits[:, : config.unpadded_vocab_size].float()
