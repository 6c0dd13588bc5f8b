"""Shapes of grouped_experts, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp, lgamma, log, log1p
from typing import TYPE_CHECKING, Any

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from microturn.kernels.draw import Draw


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
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"T={self.T},H={self.H},I={self.I},E={self.E},A={self.A},Sh={self.Sh}"

    @property
    def flops(self) -> int:
        return 6 * self.T * (self.A + self.Sh) * self.H * self.I

    @property
    def experts_hit(self) -> int:
        """Distinct routed experts expected under uniform routing, rounded; so many are drawn."""
        if self.A == 0 or self.T == 0:
            return 0
        return max(self.A, round(self.E * (1 - (1 - self.A / self.E) ** self.T)))

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        width = streamed or itemsize
        weights = (self.experts_hit + (self.Sh if self.T else 0)) * 3 * self.H * self.I
        scales = weights // 128 if width == 1 else 0
        rows = 2 * self.T * self.H * itemsize + self.T * (8 * self.A + 4 * self.Sh)
        return weights * width + scales + rows

    def tiled(self, constants: Mapping[str, Any]) -> float:
        """Rows that the tiles of a launch hold, over the rows that there are; both as expected
        under uniform routing. constants: of the launch.
        """
        block = constants.get("BLOCK_T", 1)
        shared = constants.get("BLOCK_SHARED_T", block)
        held = self.Sh * -(-self.T // shared) * shared
        if self.A:
            held += self.E * sum(
                chance * rows_held(n, block, constants.get("FEW_T", 0))
                for n, chance in enumerate(_binomial(self.T, self.A / self.E))
            )
        return float(held / max(1, self.T * (self.A + self.Sh)))


def rows_held(n: int, block: int, few: int) -> int:
    """Rows of the tiles of n rows: blocks, the last of them of `few` rows if they fit."""
    whole, rest = divmod(n, block)
    return whole * block + (0 if rest == 0 else few if rest <= few else block)


def _binomial(trials: int, p: float) -> Iterator[float]:
    """The chance of 0, 1, ... trials successes."""
    for n in range(trials + 1):
        ways = lgamma(trials + 1) - lgamma(n + 1) - lgamma(trials - n + 1)
        if p == 1:
            yield float(n == trials)
        else:
            yield exp(ways + n * log(p) + (trials - n) * log1p(-p))


CASES = (
    GroupedExpertsCase(0, 64, 32, 8, 2, 2, "no rows"),
    GroupedExpertsCase(1, 256, 64, 16, 2, 2, "interaction-tiny, a decode row"),
    GroupedExpertsCase(3, 256, 64, 16, 2, 2, "interaction-tiny, a tick of one session"),
    GroupedExpertsCase(9, 64, 48, 5, 2, 1, "one row over a tile; width one vector and a half"),
    GroupedExpertsCase(61, 64, 32, 3, 2, 2, "many rows an expert: several tiles each"),
    GroupedExpertsCase(17, 64, 16, 64, 6, 2, "most experts idle"),
    GroupedExpertsCase(5, 64, 32, 4, 1, 0, "no shared experts"),
    GroupedExpertsCase(17, 48, 80, 0, 0, 3, "no routed experts: a dense MLP in three blocks"),
    GroupedExpertsCase(257, 48, 32, 3, 2, 1, "one row more than a decode step"),
    GroupedExpertsCase(259, 48, 32, 0, 0, 2, "a dense MLP over a prefill step"),
)

DTYPES = ("bf16", "fp8")
_SMALL = "interaction-small, half its released expert width"
BENCH_CASES = (
    *(
        GroupedExpertsCase(
            T, 4096, 1024, 256, 6, 2, _SMALL, Bar(us, of_floor, fp8=Bar(of_floor=of_floor_fp8))
        )
        for T, us, of_floor, of_floor_fp8 in (
            (1, 60, 0.78, 0.62),
            (4, 170, 0.86, 0.80),
            (8, 300, 0.90, 0.90),
            (32, 880, 0.92, 0.90),
            (256, 1620, 0.93, 0.90),
        )
    ),
    *(
        GroupedExpertsCase(T, 4096, 256, 256, 6, 2, "a shard of eight", Bar(us=us))
        for T, us in ((3, 38), (64, 335), (192, 420))
    ),
    GroupedExpertsCase(8, 4096, 2048, 256, 6, 2, "interaction-small as released"),
    GroupedExpertsCase(8, 4096, 2048, 0, 0, 8, "its dense layers, in blocks of 2048"),
    GroupedExpertsCase(8, 1536, 384, 64, 6, 2, "interaction-mini"),
    GroupedExpertsCase(
        32768, 2048, 768, 128, 8, 0, "the shape peers publish for prefill", Bar(tflops=560)
    ),
    GroupedExpertsCase(
        2731,
        4096,
        1024,
        256,
        6,
        2,
        "64 rows an expert: weights still bind",
        Bar(of_floor=0.85, fp8=Bar(of_floor=0.85)),
    ),
    GroupedExpertsCase(2048, 4096, 2048, 0, 0, 8, "prefill of a dense layer"),
)


def make_inputs(
    case: GroupedExpertsCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """`experts_hit` experts are hit, none twice by a row; weights sum to 8; fp32 unless given."""
    import torch

    from microturn.kernels.draw import Draw
    from microturn.kernels.grouped_experts.reference import ExpertInputs, ExpertWeights
    from microturn.kernels.router import Routing

    draw = Draw(seed, dtype, device)
    e, a, sh, h, i = case.E, case.A, case.Sh, case.H, case.I
    ids = _draw_ids(case, draw)
    share = 8 * torch.softmax(draw.normal(case.T, a + sh, dtype=torch.float32), dim=1)
    x = draw.normal(case.T, h)
    weights = ExpertWeights(
        draw.weight(e, 2 * i, h, scale=h**-0.5),
        draw.weight(e, h, i, scale=i**-0.5),
        draw.weight(sh, 2 * i, h, scale=h**-0.5),
        draw.weight(sh, h, i, scale=i**-0.5),
    )
    routing = Routing(ids, share[:, :a].contiguous(), share[:, a:].contiguous())
    return OpInputs(ExpertInputs(x, routing), weights, None, None)


def _draw_ids(case: GroupedExpertsCase, draw: Draw) -> Tensor:
    """[T, A] int32: `experts_hit` of E, every one of them at least once, none twice in a row."""
    import torch

    t, a, hit = case.T, case.A, case.experts_hit
    if draw.meta or t * a == 0:
        return torch.zeros(t, a, dtype=torch.int32, device=draw.device)
    some = draw.uniform(case.E).argsort()[:hit]
    score = draw.uniform(t, hit)
    # Pair p brings expert p of the first `hit` pairs; what else a row chooses is up to chance.
    p = torch.arange(hit, device=draw.device)
    score[p // a, p] += 1
    return some[score.argsort(dim=1, descending=True)[:, :a]].int()
