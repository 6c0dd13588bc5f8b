"""Shapes of router, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RouterCase:
    """T rows of width H to A of E routed experts beside Sh shared ones."""

    T: int
    H: int
    E: int
    A: int
    Sh: int
    reason: str

    @property
    def id(self) -> str:
        return f"T={self.T},H={self.H},E={self.E},A={self.A},Sh={self.Sh}"

    @property
    def flops(self) -> int:
        return 2 * self.T * self.H * (self.E + self.Sh)

    def bytes(self, itemsize: int) -> int:
        values = self.T * self.H + (self.E + self.Sh) * self.H
        return values * itemsize + 4 * self.E + self.T * (8 * self.A + 4 * self.Sh)


CASES = (
    RouterCase(0, 64, 16, 2, 2, "no rows"),
    RouterCase(1, 256, 16, 2, 2, "interaction-tiny, a decode row"),
    RouterCase(3, 256, 16, 2, 2, "interaction-tiny, a tick of one session"),
    RouterCase(13, 80, 5, 5, 1, "prime rows, every expert chosen"),
    RouterCase(8, 512, 256, 6, 2, "the published expert counts"),
    RouterCase(4, 64, 16, 1, 0, "one expert, none shared: the weight is the scale"),
)


def make_inputs(
    case: RouterCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Logits of about unit size, a selection bias that changes some choices; dtype fp32 unless
    given.
    """
    import torch

    from microturn.kernels.router.reference import RouterWeights

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(case.T, case.H, generator=g)
    gate = torch.randn(case.E + case.Sh, case.H, generator=g) / case.H**0.5
    bias = 0.2 * torch.randn(case.E, generator=g)
    scale = 8 * (1 + 0.1 * torch.randn(1, generator=g))
    weights = RouterWeights(
        gate.to(device, dtype), bias.to(device), case.A, case.Sh, scale.to(device)
    )
    return OpInputs(x.to(device, dtype), weights, None, None)
