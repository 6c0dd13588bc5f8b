"""Shapes of linear, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LinearCase:
    """T rows of width K to width N."""

    T: int
    N: int
    K: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"T={self.T},N={self.N},K={self.K}"

    @property
    def flops(self) -> int:
        return 2 * self.T * self.N * self.K

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        return self.N * self.K * (streamed or itemsize) + (self.T * (self.K + self.N)) * itemsize


CASES = (
    LinearCase(0, 64, 64, "no rows: an empty tick still has a shape"),
    LinearCase(1, 64, 48, "one row: torch alone would take its matrix-vector path"),
    LinearCase(3, 160, 64, "a tick of one session"),
    LinearCase(9, 48, 80, "one row over a tile"),
    LinearCase(17, 40, 64, "prime rows, width not a multiple of 16"),
)

DTYPES = ("bf16", "fp8")
_READ = Bar(of_floor=0.88, fp8=Bar(of_floor=0.88))
BENCH_CASES = (
    *(LinearCase(T, 6656, 4096, "q, k, v and r of interaction-small", _READ) for T in (1, 16, 64)),
    *(LinearCase(T, 25128, 4096, "an eighth of its vocabulary", _READ) for T in (1, 16, 64)),
    *(LinearCase(T, 4096, 4096, "its attention output: few tiles, split along K") for T in (1, 64)),
    LinearCase(256, 6656, 4096, "the largest decode step"),
    LinearCase(192, 4096, 16384, "down projection of its dense layers, an append pass of 64"),
)


def make_inputs(
    case: LinearCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs of the case's shape; dtype fp32 unless given."""
    from microturn.kernels.draw import Draw

    draw = Draw(seed, dtype, device)
    x = draw.normal(case.T, case.K)
    return OpInputs(x, draw.weight(case.N, case.K, scale=case.K**-0.5), None, None)
