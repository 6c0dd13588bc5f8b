"""dmel: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.arena import ArenaSpec, Twice
from microturn.kernels.checks import check_dtype, check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.dmel.reference import dmel_reference
from microturn.kernels.dmel.weights import HOP, DMelWeights, dmel_weights
from microturn.kernels.rows import RowBatch

__all__ = ["DMelWeights", "dmel", "dmel_spec", "dmel_weights"]


def dmel_spec(name: str, cursor: str = "frames") -> ArenaSpec:
    """The arena of a stream's last hop."""
    return ArenaSpec(name, "twice", (HOP,), 1, cursor)


def dmel(
    x: Tensor,
    weights: DMelWeights,
    state: Twice | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """bins[t, m] = nearest of 16 centres to log10(filters[m] @ |rfft(window * (previous, x[t]))|).

    x       [T, 800] fp32: hops of 50 ms at 16 kHz in [-1, 1], packed; zeros stand before position 0
    weights DMelWeights (`dmel_weights()`): magnitudes and mel sums are floored at 1e-10, the
            logarithm is clamped to [-7, 2], centres are -7 + 0.6 k, ties go to the lower
    state   Twice of `dmel_spec`: the previous hop [2, S, 800]; None: whole sequences, every line
            starts at its first row
    rows    lines of hops; rows of lines that do not run give zeros and change no state
    out     [T, 80] int64, 0 to 15; allocated when None

    fp32 throughout; a row's bits depend on its hop and the one before only. On a CPU in the order
    that the released extractor computes, so that bins agree with it even where a band holds only
    rounding noise. The kernel transforms in another order: a magnitude is off by at most 8 * 2^-24
    of the sum of the windowed samples without sign, and a bin differs only where that much, or 1e-6
    of a filter's sum, reaches an edge (4 bins of 16,000 of a loud pure tone, none of speech).
    A NaN sample gives bin 0, which no finite audio does (silence is bin 2).
    Source: spec/inkling.md 1.4. Raises ValueError on shapes, TypeError on dtypes.
    """
    check_shape("dmel", "x", x, ("T", HOP))
    check_dtype("dmel", "x", x, torch.float32)
    check_rows("dmel", rows, x.shape[0])
    if state is not None:
        check_shape("dmel", "state", state.data, (2, "S", HOP))
    return pick("dmel", x.device, dmel_reference)(x, weights, state, rows, out=out)
