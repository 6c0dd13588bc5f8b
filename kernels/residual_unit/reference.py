"""residual_unit in plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import run_lines
from microturn.kernels.causal_conv.reference import ConvWeights
from microturn.kernels.causal_conv.reference import core as conv_core
from microturn.kernels.rows import RowBatch


@dataclass(frozen=True)
class ResidualUnitWeights:
    """inner: C -> hidden over K rows; outer: hidden -> C over one row. Both stride 1, ELU first."""

    inner: ConvWeights
    outer: ConvWeights

    @property
    def tail_shape(self) -> tuple[int, int]:
        """Of the `Twice` arena, a slot."""
        return self.inner.tail_shape


def core(
    x: Tensor,
    weights: ResidualUnitWeights,
    carry: Tensor | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [N, L, C], carry [N, K - 1, C] -> (y [N, L, C], next carry). See `carry.CarryCore`."""
    hidden, tail = conv_core(x, weights.inner, carry, fresh)
    return x + conv_core(hidden, weights.outer)[0], tail


def residual_unit_reference(
    x: Tensor,
    weights: ResidualUnitWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `residual_unit`."""
    return run_lines(partial(core, weights=weights), x, state, rows, width=int(x.shape[1]), out=out)
