"""Shapes of rvq_dequantize, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DequantizeCase:
    """T frames of q codes from Q books of N rows of width d, to width D."""

    T: int
    q: int
    Q: int
    N: int
    d: int
    D: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"T={self.T},q={self.q},Q={self.Q},N={self.N},d={self.d},D={self.D}"

    @property
    def flops(self) -> int:
        return self.T * self.q * self.D

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Rows of books with the projection folded in, fp32."""
        return self.T * (4 * self.q * self.D + self.D * itemsize + 8 * self.q)


CASES = (
    DequantizeCase(0, 4, 4, 32, 16, 32, "no frames"),
    DequantizeCase(2, 4, 4, 256, 64, 128, "a small codec, a tick of one session"),
    DequantizeCase(3, 8, 32, 64, 32, 48, "8 of 32 books, as the released codec runs"),
    DequantizeCase(5, 1, 3, 7, 24, 20, "the semantic book alone, odd sizes"),
)

BENCH_CASES = tuple(
    DequantizeCase(S, 8, 8, 2048, 256, 512, "Mimi, a frame of each session") for S in (1, 16, 64)
)


def make_inputs(
    case: DequantizeCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Uniform codes, Gaussian books; dtype fp32 unless given. A line for each frame."""
    from microturn.kernels.draw import Draw
    from microturn.kernels.rows import RowBatch
    from microturn.kernels.rvq_dequantize.reference import DequantizeWeights

    draw = Draw(seed, dtype, device)
    codes = draw.integers(0, case.N, (case.T, case.q))
    tables = draw.normal(case.Q, case.N, case.d)
    semantic, acoustic = (draw.normal(case.D, case.d, scale=case.d**-0.5) for _ in range(2))
    slots = list(range(case.T))
    rows = RowBatch.build(slots, [1] * case.T, [5] * case.T, device=draw.device)
    return OpInputs(codes, DequantizeWeights(tables, semantic, acoustic), None, rows)
