"""Shapes of rvq_quantize, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantizeCase:
    """T latents of width D to codes of Q books of N rows of width d."""

    T: int
    D: int
    Q: int
    N: int
    d: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"T={self.T},D={self.D},Q={self.Q},N={self.N},d={self.d}"

    @property
    def flops(self) -> int:
        return self.T * (4 * self.D * self.d + 2 * self.Q * self.N * self.d)

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        weights = 2 * self.D * self.d + self.Q * self.N * (self.d + 1)
        return (self.T * self.D + weights) * itemsize + 8 * self.T * self.Q


CASES = (
    QuantizeCase(0, 32, 4, 32, 16, "no frames"),
    QuantizeCase(2, 128, 4, 256, 64, "a small codec, a tick of one session"),
    QuantizeCase(17, 48, 5, 130, 40, "one row over a tile, rows of a book over tiles"),
    QuantizeCase(5, 20, 3, 7, 24, "odd sizes"),
)

NARROW_LOADS = {
    "quantize_books.semantic_ptr": "tiles of 32 by 16: 4 values a thread; a projection of 0.3 MB",
    "quantize_books.acoustic_ptr": "as semantic_ptr",
    "quantize_books.tables_ptr": "the 16 rows taken last; searched rows come 16 bytes at a time",
}
BENCH_CASES = tuple(
    QuantizeCase(S, 512, 8, 2048, 256, "Mimi, a frame of each session") for S in (1, 16, 64)
)


def make_inputs(
    case: QuantizeCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian latents and books; dtype fp32 unless given. A line for each frame."""
    from microturn.kernels.draw import Draw
    from microturn.kernels.rows import RowBatch
    from microturn.kernels.rvq_quantize.reference import QuantizeWeights, half_norms

    draw = Draw(seed, dtype, device)
    x = draw.normal(case.T, case.D)
    tables = draw.normal(case.Q, case.N, case.d)
    semantic, acoustic = (draw.normal(case.d, case.D, scale=case.D**-0.5) for _ in range(2))
    weights = QuantizeWeights(tables, half_norms(tables), semantic, acoustic)
    slots = list(range(case.T))
    rows = RowBatch.build(slots, [1] * case.T, [5] * case.T, device=draw.device)
    return OpInputs(x, weights, None, rows)
