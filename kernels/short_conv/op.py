"""short_conv: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.arena import Ring
from microturn.kernels.checks import check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.reference import short_conv_reference

__all__ = ["check_ring", "short_conv"]


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
        check_ring("short_conv", state, weights.shape[1], rows)
        run = pick("short_conv", x.device, short_conv_reference)
    else:
        run = short_conv_reference
    return run(x, weights, state, rows, out=out)


def check_ring(op: str, ring: Ring, kernel_size: int, rows: RowBatch) -> None:
    """Raises ValueError when a line brings more rows than `ring` takes beside the taps."""
    if rows.on_host:
        longest = rows.longest
    elif rows.max_line_rows is None:
        return
    else:
        longest = rows.max_line_rows
    if longest + kernel_size - 1 > ring.capacity:
        raise ValueError(
            f"{op}: a line brings {longest} rows, a ring of {ring.capacity} takes "
            f"{ring.capacity - kernel_size + 1} at kernel size {kernel_size}; "
            f"cut the line or build the ring with a larger max_rows_per_tick"
        )
