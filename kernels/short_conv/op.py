"""short_conv: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.arena import Ring
from microturn.kernels.checks import check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.reference import short_conv_reference

__all__ = ["short_conv"]


def short_conv(
    x: Tensor,
    weights: Tensor,
    state: Ring | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[t, c] = x[t, c] + sum over m of weights[c, m] * x[t - K + 1 + m, c], in fp32, cast once.

    x       [T, C], any float dtype: packed rows; x[t - 1] is the row before in the same stream
    weights [C, K]: weights[:, K - 1] meets the current token
    state   Ring of raw inputs [S, capacity, C], see `short_conv_spec`; the rows of x are written
            at their positions. None: every line is a whole sequence with nothing before it, and the
            result is differentiable
    rows    what each row is; rows of lines that do not run come back as zeros
    out     [T, C], dtype of x; allocated when None

    Taps before position 0 are zero. Source: spec/inkling.md 1.2. Raises ValueError on shapes, and
    on a line with more rows than the ring can take.
    """
    channels = x.shape[-1]
    check_shape("short_conv", "x", x, ("T", channels))
    check_shape("short_conv", "weights", weights, (channels, "K"))
    check_rows("short_conv", rows, x.shape[0])
    if state is not None:
        check_shape("short_conv", "state", state.data, ("S", "capacity", channels))
        longest = max((line.stop - line.start for line in rows.lines), default=0)
        if longest + weights.shape[1] - 1 > state.capacity:
            raise ValueError(
                f"short_conv: a line brings {longest} rows, a ring of {state.capacity} takes "
                f"{state.capacity - weights.shape[1] + 1} at kernel size {weights.shape[1]}; "
                f"cut the line or build the ring with a larger max_rows_per_tick"
            )
    return pick("short_conv", x.device, short_conv_reference)(x, weights, state, rows, out=out)
