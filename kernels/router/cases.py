"""Shapes of router, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

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
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"T={self.T},H={self.H},E={self.E},A={self.A},Sh={self.Sh}"

    @property
    def flops(self) -> int:
        return 2 * self.T * self.H * (self.E + self.Sh)

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        values = self.T * self.H + (self.E + self.Sh) * self.H
        return values * itemsize + 4 * self.E + self.T * (8 * self.A + 4 * self.Sh)


CASES = (
    RouterCase(0, 64, 16, 2, 2, "no rows"),
    RouterCase(1, 256, 16, 2, 2, "interaction-tiny, a decode row"),
    RouterCase(3, 256, 16, 2, 2, "interaction-tiny, a tick of one session"),
    RouterCase(13, 80, 5, 5, 1, "prime rows, every expert chosen"),
    RouterCase(8, 512, 256, 6, 2, "the published expert counts"),
    RouterCase(4, 64, 16, 1, 0, "one expert, none shared: the weight is the scale"),
    RouterCase(17, 1040, 16, 2, 2, "two blocks of rows, three chunks of inputs"),
    RouterCase(257, 48, 8, 2, 1, "one row more than a decode step: nothing is listed"),
)

DTYPES = ("bf16",)
NARROW_LOADS = {"route.parts_ptr": "rows of 258 sums begin at 8 bytes; of this launch, in the L2"}
BENCH_CASES = (
    *(RouterCase(T, 4096, 256, 6, 2, "interaction-small") for T in (1, 4, 16, 64, 256, 4096)),
    RouterCase(3, 1536, 64, 6, 2, "interaction-mini, a tick of one session"),
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

    from microturn.kernels.draw import Draw
    from microturn.kernels.router.reference import RouterWeights

    draw = Draw(seed, dtype, device)
    x = draw.normal(case.T, case.H)
    gate = draw.normal(case.E + case.Sh, case.H, scale=case.H**-0.5)
    bias = draw.normal(case.E, scale=0.2, dtype=torch.float32)
    scale = 8 + draw.normal(1, scale=0.8, dtype=torch.float32)
    return OpInputs(x, RouterWeights(gate, bias, case.A, case.Sh, scale), None, None)
