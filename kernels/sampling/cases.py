"""Shapes of sampling, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

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

    @property
    def id(self) -> str:
        return f"B={self.B},V={self.V},K={self.K},temp={self.temperature}"

    @property
    def flops(self) -> int:
        draws = min(self.K, self.V) if self.temperature else 0
        return self.B * (2 * self.V + OPS_A_CANDIDATE * draws)

    def bytes(self, itemsize: int) -> int:
        """Logits at `itemsize`; one fp32 and four int64 a row."""
        return self.B * (self.V * itemsize + 4 + 4 * 8)


CASES = (
    SamplingCase(0, 64, 5, 80, "no rows"),
    SamplingCase(1, 512, 25, 70, "text of interaction-tiny"),
    SamplingCase(4, 256, 250, 80, "one codebook of interaction-tiny, four sessions"),
    SamplingCase(3, 256, 250, 0, "greedy"),
    SamplingCase(2, 37, 100, 100, "prime vocabulary smaller than top_k"),
    SamplingCase(2, 32001, 25, 70, "a vocabulary past the sort limit"),
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

    from microturn.kernels.sampling.reference import TEXT_STREAM, SamplingParams

    del dtype
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(case.B, case.V, generator=g)
    params = SamplingParams(
        torch.full((case.B,), case.temperature / 100).to(device),
        torch.full((case.B,), case.K).to(device),
        torch.randint(-(2**63), 2**63 - 1, (case.B,), generator=g).to(device),
        torch.randint(0, 100_000, (case.B,), generator=g).to(device),
        TEXT_STREAM,
    )
    return OpInputs(logits.to(device), params, None, None)
