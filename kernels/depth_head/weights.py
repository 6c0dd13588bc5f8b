"""Weights of the depth head, stacked over codebooks, and the views each step uses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from microturn.kernels.checks import check_shape
from microturn.kernels.rms_norm import RMSNormWeights
from microturn.kernels.tiles import WIDTH


class LayerStep(NamedTuple):
    """One layer at one step."""

    attention_norm: RMSNormWeights
    qkv: Tensor
    out: Tensor
    mlp_norm: RMSNormWeights
    gate_up: Tensor
    down: Tensor


class Step(NamedTuple):
    """One codebook: the table its input id is looked up in, its layers, its head."""

    table: Tensor
    layers: tuple[LayerStep, ...]
    head: Tensor


@dataclass(frozen=True)
class DepthWeights:
    """Q codebooks of V codes, L layers of width D with a gated MLP of width G, trunk width H.

    hidden_in       [Q, D, H]        the trunk's hidden state, a projection for each step
    text_table      [text ids, D]    looked up at step 0
    code_tables     [Q - 1, V, D]    table k - 1 is looked up at step k
    attention_gain  [L, D]           norms are shared by the steps
    qkv             [L, Q, 3 * D, D] rows q, then k, then v, each head-major
    out             [L, Q, D, D]
    mlp_gain        [L, D]
    gate_up         [L, Q, 2 * G, D] rows of the gate, then those it gates
    down            [L, Q, D, G]
    heads           [Q, V, D]
    num_heads, eps  head width is D / num_heads; eps of every norm (Moshi: 1e-8)

    Raises ValueError on shapes that disagree, or H, D, G that are not multiples of 16 (DESIGN 2).
    """

    hidden_in: Tensor
    text_table: Tensor
    code_tables: Tensor
    attention_gain: Tensor
    qkv: Tensor
    out: Tensor
    mlp_gain: Tensor
    gate_up: Tensor
    down: Tensor
    heads: Tensor
    num_heads: int
    eps: float

    def __post_init__(self) -> None:
        books, depth, hidden = self.hidden_in.shape
        layers, gate, size = self.down.shape[0], self.down.shape[-1], self.heads.shape[1]
        for name, shape in {
            "text_table": ("text ids", depth),
            "code_tables": (books - 1, size, depth),
            "attention_gain": (layers, depth),
            "qkv": (layers, books, 3 * depth, depth),
            "out": (layers, books, depth, depth),
            "mlp_gain": (layers, depth),
            "gate_up": (layers, books, 2 * gate, depth),
            "down": (layers, books, depth, gate),
            "heads": (books, size, depth),
        }.items():
            check_shape("depth_head", name, getattr(self, name), shape)
        for name, width in {"hidden": hidden, "depth": depth, "gate": gate}.items():
            if width % WIDTH:
                raise ValueError(f"depth_head: {name} width must be a multiple of 16, got {width}")
        if depth % self.num_heads:
            raise ValueError(f"depth_head: {self.num_heads} heads do not divide the width {depth}")

    @property
    def num_codebooks(self) -> int:
        return int(self.heads.shape[0])

    @property
    def codebook_size(self) -> int:
        return int(self.heads.shape[1])

    @property
    def hidden_size(self) -> int:
        return int(self.hidden_in.shape[2])

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Views a step at a time. Unbound, not indexed: autograd then stacks the gradients once."""
        layers = range(self.qkv.shape[0])
        attention = [RMSNormWeights(g, self.eps) for g in self.attention_gain.unbind(0)]
        mlp = [RMSNormWeights(g, self.eps) for g in self.mlp_gain.unbind(0)]
        qkv, out, gate_up, down = (
            [of_layer.unbind(0) for of_layer in stack.unbind(0)]
            for stack in (self.qkv, self.out, self.gate_up, self.down)
        )
        tables = (self.text_table, *self.code_tables.unbind(0))
        return tuple(
            Step(
                tables[k],
                tuple(
                    LayerStep(attention[i], qkv[i][k], out[i][k], mlp[i], gate_up[i][k], down[i][k])
                    for i in layers
                ),
                head,
            )
            for k, head in enumerate(self.heads.unbind(0))
        )
