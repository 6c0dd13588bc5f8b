"""Shapes of grouped_experts, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GroupedExpertsCase:
    """T rows of width H through A of E routed and Sh shared experts of width I."""

    T: int
    H: int
    I: int  # noqa: E741 (the letter of DESIGN 6)
    E: int
    A: int
    Sh: int
    reason: str

    @property
    def id(self) -> str:
        return f"T={self.T},H={self.H},I={self.I},E={self.E},A={self.A},Sh={self.Sh}"

    @property
    def flops(self) -> int:
        return 6 * self.T * (self.A + self.Sh) * self.H * self.I

    @property
    def experts_hit(self) -> float:
        """Distinct routed experts expected under uniform routing."""
        return self.E * (1 - (1 - self.A / self.E) ** self.T)

    def bytes(self, itemsize: int) -> int:
        experts = self.experts_hit + (self.Sh if self.T else 0)
        values = experts * 3 * self.H * self.I + 2 * self.T * self.H
        return round(values) * itemsize + self.T * (8 * self.A + 4 * self.Sh)


CASES = (
    GroupedExpertsCase(0, 64, 32, 8, 2, 2, "no rows"),
    GroupedExpertsCase(1, 256, 64, 16, 2, 2, "interaction-tiny, a decode row"),
    GroupedExpertsCase(3, 256, 64, 16, 2, 2, "interaction-tiny, a tick of one session"),
    GroupedExpertsCase(9, 64, 48, 5, 2, 1, "one row over a tile; width one vector and a half"),
    GroupedExpertsCase(61, 64, 32, 3, 2, 2, "many rows an expert: several tiles each"),
    GroupedExpertsCase(17, 64, 16, 64, 6, 2, "most experts idle"),
    GroupedExpertsCase(5, 64, 32, 4, 1, 0, "no shared experts"),
)


def make_inputs(
    case: GroupedExpertsCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Uniform routing without repetition in a row, weights that sum to 8; dtype fp32 unless
    given.
    """
    import torch

    from microturn.kernels.grouped_experts.reference import ExpertInputs, ExpertWeights
    from microturn.kernels.router import Routing

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=g)).to(device, dtype)

    e, a, sh, h, i = case.E, case.A, case.Sh, case.H, case.I
    ids = torch.rand(case.T, e, generator=g).argsort(dim=1)[:, :a].int()
    share = 8 * torch.rand(case.T, a + sh, generator=g).softmax(dim=1)
    x = normal(case.T, h)
    weights = ExpertWeights(
        normal(e, 2 * i, h, scale=h**-0.5),
        normal(e, h, i, scale=i**-0.5),
        normal(sh, 2 * i, h, scale=h**-0.5),
        normal(sh, h, i, scale=i**-0.5),
    )
    routing = Routing(ids.to(device), share[:, :a].to(device), share[:, a:].to(device))
    return OpInputs(ExpertInputs(x, routing), weights, None, None)
