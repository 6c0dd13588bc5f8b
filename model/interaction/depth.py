"""The depth head as a module: sizes, parameters, and the weights the op takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microturn.kernels.depth_head import DepthInputs, DepthOutputs, DepthWeights, depth_head
from microturn.kernels.depth_head.reference import core
from microturn.kernels.rows import RowBatch


@dataclass(frozen=True)
class DepthConfig:
    """Sizes of a depth head (spec/interaction.md 1).

    hidden_size     width of the trunk
    depth_size      width of the head's own transformer
    gate_size       width of its gated MLP, after the gate
    num_codebooks   codes in a frame, one step each
    text_vocab_size rows of the text table, special ids included
    """

    hidden_size: int
    depth_size: int
    num_layers: int
    num_heads: int
    gate_size: int
    num_codebooks: int
    codebook_size: int
    text_vocab_size: int
    eps: float = 1e-6


class DepthHead(nn.Module):
    """Parameters are stacked over layers and codebooks; shapes and names are DepthWeights'.

    Fresh parameters are uninitialised: load them, or call `reset_parameters`.
    """

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.config = c = config
        stack = (c.num_layers, c.num_codebooks)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape))

        self.hidden_in = parameter(c.num_codebooks, c.depth_size, c.hidden_size)
        self.text_table = parameter(c.text_vocab_size, c.depth_size)
        self.code_tables = parameter(c.num_codebooks - 1, c.codebook_size, c.depth_size)
        self.attention_gain = parameter(c.num_layers, c.depth_size)
        self.qkv = parameter(*stack, 3 * c.depth_size, c.depth_size)
        self.out = parameter(*stack, c.depth_size, c.depth_size)
        self.mlp_gain = parameter(c.num_layers, c.depth_size)
        self.gate_up = parameter(*stack, 2 * c.gate_size, c.depth_size)
        self.down = parameter(*stack, c.depth_size, c.gate_size)
        self.heads = parameter(c.num_codebooks, c.codebook_size, c.depth_size)
        self._kept: tuple[tuple[int, ...], DepthWeights] | None = None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Gaussian: the input of a step has unit variance when the hidden state has, each layer
        adds its share of one more, logits start near unit variance. Gains are ones.
        """
        c = self.config

        def fill(parameter: Tensor, std: float) -> None:
            parameter.normal_(0.0, std, generator=generator)

        halved = 0.5**0.5
        branch = (2 * c.num_layers) ** -0.5
        fill(self.hidden_in, halved * c.hidden_size**-0.5)
        fill(self.text_table, halved)
        fill(self.code_tables, halved)
        fill(self.qkv, c.depth_size**-0.5)
        fill(self.out, branch * c.depth_size**-0.5)
        fill(self.gate_up, c.depth_size**-0.5)
        fill(self.down, branch * c.gate_size**-0.5)
        fill(self.heads, halved * c.depth_size**-0.5)
        self.attention_gain.fill_(1.0)
        self.mlp_gain.fill_(1.0)

    @property
    def weights(self) -> DepthWeights:
        """What `depth_head` takes. Outside autograd the same object each time, sharing the
        parameters' memory, until a parameter moves.
        """
        if torch.is_grad_enabled():
            return self._assemble()
        where = tuple([p.data_ptr() for p in self._parameters.values() if p is not None])
        if self._kept is None or self._kept[0] != where:
            self._kept = (where, self._assemble())
        return self._kept[1]

    def _assemble(self) -> DepthWeights:
        return DepthWeights(
            hidden_in=self.hidden_in,
            text_table=self.text_table,
            code_tables=self.code_tables,
            attention_gain=self.attention_gain,
            qkv=self.qkv,
            out=self.out,
            mlp_gain=self.mlp_gain,
            gate_up=self.gate_up,
            down=self.down,
            heads=self.heads,
            num_heads=self.config.num_heads,
            eps=self.config.eps,
        )

    def forward(
        self, inputs: DepthInputs, rows: RowBatch | None = None, out: DepthOutputs | None = None
    ) -> DepthOutputs:
        """Draws one frame a row: see `depth_head`."""
        return depth_head(inputs, self.weights, None, rows, out=out)

    def teacher_forced(self, hidden: Tensor, text_ids: Tensor, codes: Tensor) -> Tensor:
        """Logits of every code given those before it, for training.

        hidden [B, hidden_size], text_ids [B] int64, codes [B, Q] int64 -> [B, Q, codebook_size].
        """
        return core(hidden, text_ids, codes, self.weights)
