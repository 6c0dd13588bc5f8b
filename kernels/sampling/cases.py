"""Shapes of sampling, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch

OPS_A_CANDIDATE = 120
"""Integer and fp32 operations of one draw: ten Philox rounds of ten, the rest the logarithms."""


@dataclass(frozen=True)
class SamplingCase:
    """B rows over a vocabulary of V, K candidates, temperature in hundredths."""

    B: int
    V: int
    K: int
    temperature: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"B={self.B},V={self.V},K={self.K},temp={self.temperature}"

    @property
    def flops(self) -> int:
        draws = min(self.K, self.V) if self.temperature else 0
        return self.B * (2 * self.V + OPS_A_CANDIDATE * draws)

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Logits at `itemsize`; one fp32 and four int64 a row."""
        return self.B * (self.V * itemsize + 4 + 4 * 8)


CASES = (
    SamplingCase(0, 64, 5, 80, "no rows"),
    SamplingCase(1, 512, 25, 70, "text of interaction-tiny"),
    SamplingCase(4, 256, 250, 80, "one codebook of interaction-tiny, four sessions"),
    SamplingCase(3, 256, 250, 0, "greedy"),
    SamplingCase(2, 37, 100, 100, "prime vocabulary smaller than top_k"),
    SamplingCase(2, 32001, 25, 70, "a vocabulary past the sort limit"),
    SamplingCase(2, 5003, 900, 90, "candidates of two parts, more than one block of them"),
)

DTYPES = ("fp32",)
BENCH_CASES = (
    SamplingCase(1, 201024, 25, 70, "text of interaction-small"),
    SamplingCase(64, 201024, 25, 70, "text of 64 sessions"),
    SamplingCase(1, 2048, 250, 80, "one codebook"),
    SamplingCase(64, 2048, 250, 80, "one codebook of 64 sessions"),
)


def make_inputs(
    case: SamplingCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian logits of the case's shape, one seed a row; logits are fp32 whatever `dtype`."""
    import torch

    from microturn.kernels.draw import Draw
    from microturn.kernels.sampling.reference import TEXT_STREAM, SamplingParams

    del dtype
    draw = Draw(seed, torch.float32, device)
    logits = draw.normal(case.B, case.V, scale=3.0)
    params = SamplingParams(
        torch.full((case.B,), case.temperature / 100, device=device),
        torch.full((case.B,), case.K, device=device),
        draw.integers(-(2**63), 2**63 - 1, (case.B,)),
        draw.integers(0, 100_000, (case.B,)),
        TEXT_STREAM,
    )
    return OpInputs(logits, params, None, None)
