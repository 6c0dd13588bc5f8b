"""Shapes of codec_transformer, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CodecTransformerCase:
    """S lines of L rows from position P, N layers of width D, H heads, F inside, window W."""

    S: int
    L: int
    P: int
    N: int
    D: int
    H: int
    F: int
    W: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return (
            f"S={self.S},L={self.L},P={self.P},N={self.N},D={self.D},H={self.H},"
            f"F={self.F},W={self.W}"
        )

    @property
    def _keys(self) -> int:
        """Visible keys, summed over the rows of a line."""
        return sum(min(self.P + i + 1, self.W) for i in range(self.L))

    @property
    def _weights(self) -> int:
        return self.D * (4 * self.D + 2 * self.F)

    @property
    def flops(self) -> int:
        return self.N * self.S * (2 * self.L * self._weights + 4 * self._keys * self.D)

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Rows in and out, weights and state; `streamed` bytes a value of the matrices."""
        read = min(self.P, self.W - 1) if self.S else 0
        kv = 2 * self.S * (read + self.L) * self.D
        moved = 2 * self.S * self.L * self.D + self.N * (6 * self.D + kv)
        return moved * itemsize + self.N * self._weights * (streamed or itemsize)


CASES = (
    CodecTransformerCase(0, 0, 0, 1, 64, 2, 64, 16, "no lines"),
    CodecTransformerCase(1, 4, 1000, 2, 128, 4, 512, 400, "a small codec, a tick, window full"),
    CodecTransformerCase(3, 2, 0, 1, 64, 2, 128, 16, "three sessions begin"),
    CodecTransformerCase(2, 5, 130, 1, 48, 3, 80, 37, "odd sizes, a leaf boundary in the window"),
    CodecTransformerCase(1, 18, 500, 1, 32, 2, 48, 100, "more rows of a line than attend together"),
)

# No bars: those of issue 4 are of a whole Mimi decode, of which this is a part.
BENCH_CASES = (
    CodecTransformerCase(1, 2, 1000, 8, 512, 8, 2048, 250, "Mimi, a frame"),
    CodecTransformerCase(16, 2, 1000, 8, 512, 8, 2048, 250, "its 16 sessions"),
    CodecTransformerCase(64, 2, 1000, 8, 512, 8, 2048, 250, "its 64 sessions"),
    CodecTransformerCase(
        1, 4, 1000, 8, 512, 8, 2048, 400, "the codec of interaction-small, a tick"
    ),
)


def make_inputs(
    case: CodecTransformerCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian rows over random keys and values; dtype fp32 unless given."""
    from microturn.kernels.arena import Ring
    from microturn.kernels.codec_transformer.reference import (
        CodecLayerWeights,
        CodecTransformerWeights,
    )
    from microturn.kernels.draw import Draw
    from microturn.kernels.rows import RowBatch
    from microturn.kernels.streaming_attention import KVState, kv_specs

    draw = Draw(seed, dtype, device)

    def random(*shape: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
        return mean + draw.normal(*shape, scale=std)

    def layer() -> CodecLayerWeights:
        width, ff = case.D, case.F
        return CodecLayerWeights(
            norm1_gain=random(width, mean=1, std=0.1),
            norm1_bias=random(width, std=0.1),
            in_proj=random(3 * width, width, std=width**-0.5),
            out_proj=random(width, width, std=width**-0.5),
            scale1=random(width, mean=0.3, std=0.1),
            norm2_gain=random(width, mean=1, std=0.1),
            norm2_bias=random(width, std=0.1),
            ff_in=random(ff, width, std=width**-0.5),
            ff_out=random(width, ff, std=ff**-0.5),
            scale2=random(width, mean=0.3, std=0.1),
        )

    head_dim = case.D // case.H
    k, v = kv_specs(
        "kv",
        kind="ring",
        window=case.W,
        max_rows_per_tick=max(case.L, 1),
        num_kv_heads=case.H,
        head_dim=head_dim,
        cursor="frames",
        dtype=draw.dtype,
    )
    weights = CodecTransformerWeights(
        tuple(layer() for _ in range(case.N)), num_heads=case.H, window=case.W
    )
    state = tuple(
        KVState(*(Ring(random(case.S + 1, spec.capacity, *spec.shape)) for spec in (k, v)))
        for _ in range(case.N)
    )
    rows = RowBatch.build(range(case.S), [case.L] * case.S, [case.P] * case.S, device=device)
    return OpInputs(random(case.S * case.L, case.D), weights, state, rows)
