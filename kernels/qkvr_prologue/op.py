"""qkvr_prologue: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.checks import check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.qkvr_prologue.reference import (
    QKVRState,
    QKVRWeights,
    qkvr_prologue_reference,
)
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.op import check_ring
from microturn.kernels.streaming_attention import AttentionInputs

OP = "qkvr_prologue"


def qkvr_prologue(
    x: Tensor,
    weights: QKVRWeights,
    state: QKVRState | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> AttentionInputs:
    """q, k, v, r = split(x); k, v = short_conv(k, v); q = rms_norm(q), k = rms_norm(k), a head at a
    time; k and v go to the arenas: what `streaming_attention` takes.

    x       [T, q + k + v + r], any float dtype: all heads of q, of k, of v, then of r
    weights QKVRWeights: taps [2 * Hkv * D, K], gains [D], the head counts
    state   QKVRState: a ring of raw k and v [S, capacity, 2 * Hkv * D] (see `short_conv`) and the
            arenas of keys and values, written at the rows' positions. None: every line is a whole
            sequence with nothing before it, and the result is differentiable
    rows    what each row is; of lines that do not run, q and r are given all the same and nothing
            is kept
    out     [T, H, D] for q; allocated when None

    Gives AttentionInputs: q [T, H, D]; k and v [T, Hkv, D], None where they went to the arenas;
    r [T, H, d_rel], a view of x, None where d_rel is 0. Sums are fp32. Source: spec/inkling.md 1.2.
    Raises ValueError on shapes, and on a line with more rows than the ring can take.
    """
    q, kv, r = weights.widths
    head_dim = weights.head_dim
    check_shape(OP, "x", x, ("T", q + kv + r))
    check_shape(OP, "taps", weights.taps, (kv, "K"))
    check_shape(OP, "k_norm", weights.k_norm.gain, (head_dim,))
    check_rows(OP, rows, x.shape[0])
    if state is None:
        return qkvr_prologue_reference(x, weights, None, rows, out=out)
    check_shape(OP, "state.conv", state.conv.data, ("S", "capacity", kv))
    check_ring(OP, state.conv, weights.taps.shape[1], rows)
    heads = (weights.num_kv_heads, head_dim)
    for name, arena in (("k", state.kv.k), ("v", state.kv.v)):
        check_shape(OP, f"state.kv.{name}", arena.data, ("S", "positions", *heads))
    run = pick(OP, x.device, qkvr_prologue_reference)
    return run(x, weights, state, rows, out=out)
