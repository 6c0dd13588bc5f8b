"""Shapes of causal_conv, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch

    from microturn.kernels.arena import Twice
    from microturn.kernels.rows import RowBatch


@dataclass(frozen=True)
class ConvCase:
    """S lines of L rows of C channels to N, kernel K, one row out for each `stride` in."""

    S: int
    L: int
    C: int
    N: int
    K: int
    stride: int
    reason: str
    replicate: bool = False
    elu: bool = True
    bias: bool = True

    @property
    def id(self) -> str:
        return f"S={self.S},L={self.L},C={self.C},N={self.N},K={self.K},stride={self.stride}"

    @property
    def flops(self) -> int:
        return 2 * self.S * self.L // self.stride * self.N * self.C * self.K

    def bytes(self, itemsize: int) -> int:
        rows = self.S * (self.L * self.C + self.L // self.stride * self.N)
        tails = 2 * self.S * (self.K - self.stride) * self.C
        return (rows + tails + self.N * (self.C * self.K + self.bias)) * itemsize


CASES = (
    ConvCase(0, 0, 16, 16, 3, 1, "no lines"),
    ConvCase(1, 4, 128, 256, 7, 1, "first convolution of the tiny decoder, a tick", elu=False),
    ConvCase(1, 2400, 16, 1, 3, 1, "last convolution of the tiny decoder, a tick: one channel out"),
    ConvCase(3, 15, 32, 64, 10, 5, "a strided level of the encoder"),
    ConvCase(2, 4, 48, 48, 4, 2, "the downsampler", replicate=True, elu=False, bias=False),
    ConvCase(5, 3, 7, 9, 4, 1, "prime rows, odd widths, fewer rows than history"),
    ConvCase(2, 4, 16, 16, 2, 2, "nothing carried: kernel as long as the stride"),
)


def make_inputs(
    case: ConvCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Lines in mid-stream (the first one at its start) over random tails; dtype fp32 unless
    given.
    """
    import torch

    from microturn.kernels.causal_conv.reference import ConvWeights

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(case.S * case.L, case.C, generator=g)
    weight = torch.randn(case.N, case.K, case.C, generator=g) / (case.C * case.K) ** 0.5
    bias = torch.randn(case.N, generator=g).to(device, dtype) if case.bias else None
    weights = ConvWeights(
        weight.to(device, dtype),
        bias,
        case.stride,
        "replicate" if case.replicate else "zero",
        case.elu,
    )
    state, rows = mid_stream(case.S, case.L, weights.tail_shape, g, dtype, device)
    return OpInputs(x.to(device, dtype), weights, state if weights.history else None, rows)


def mid_stream(
    num_lines: int,
    length: int,
    tail: tuple[int, int],
    g: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Twice, RowBatch]:
    """Random tails in two slots more than there are lines, parities mixed; lines of `length` rows,
    the first at position 0.
    """
    import torch

    from microturn.kernels.arena import Twice
    from microturn.kernels.rows import RowBatch

    slots = num_lines + 2
    data = torch.randn(2, slots, *tail, generator=g).to(device, dtype)
    parity = (torch.arange(slots) % 2).to(device)
    starts = [i * 2 * length for i in range(num_lines)]
    order = [slots - 1 - i for i in range(num_lines)]
    rows = RowBatch.build(order, [length] * num_lines, starts, device=device)
    return Twice(data, parity), rows
