"""streaming_attention: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.arena import LEAF, Pages, Ring
from microturn.kernels.checks import check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention.reference import (
    AttentionInputs,
    AttentionWeights,
    KVState,
    streaming_attention_reference,
)

OP = "streaming_attention"


def _num_kv_heads(x: AttentionInputs, state: KVState | None) -> int:
    num_rows, _, head_dim = x.q.shape
    if x.k is not None and x.v is not None:
        check_shape(OP, "k", x.k, (num_rows, "Hkv", head_dim))
        check_shape(OP, "v", x.v, (num_rows, x.k.shape[1], head_dim))
        return x.k.shape[1]
    if x.k is not None or x.v is not None:
        have, lack = ("v", "k") if x.k is None else ("k", "v")
        raise ValueError(f"{OP}: bring both k and v, or neither; got {have}, no {lack}")
    if state is None:
        raise ValueError(
            f"{OP}: without k and v the arenas hold those of the rows, but there is no state; "
            f"bring k and v, or the arenas"
        )
    check_shape(OP, "state.k", state.k.data, ("S", "positions", "Hkv", head_dim))
    return state.k.data.shape[2]


def _check_inputs(x: AttentionInputs, weights: AttentionWeights, num_kv_heads: int) -> None:
    num_rows, num_heads, _ = x.q.shape
    if num_heads % num_kv_heads:
        raise ValueError(f"{OP}: {num_heads} query heads do not share {num_kv_heads} kv heads")
    if weights.window < 1:
        raise ValueError(f"{OP}: a query sees itself, so window is 1 or more, got {weights.window}")
    if weights.log_floor is not None and weights.log_floor < 1:
        raise ValueError(f"{OP}: log_floor must be 1 or more, got {weights.log_floor}")
    if weights.num_sink_tokens < 0:
        raise ValueError(f"{OP}: num_sink_tokens is 0 or more, got {weights.num_sink_tokens}")
    if weights.num_sink_tokens and weights.rope_theta is not None:
        raise ValueError(
            f"{OP}: rope turns keys by their position, sinks would need one in the cache; take "
            f"num_sink_tokens 0 or no rope_theta, got {weights.num_sink_tokens} and "
            f"{weights.rope_theta}"
        )
    if (x.r is None) != (weights.rel_bank is None):
        have, lack = ("rel_bank", "r") if x.r is None else ("r", "rel_bank")
        raise ValueError(
            f"{OP}: the relative bias needs both r and rel_bank; got {have}, no {lack}"
        )
    if x.r is not None and weights.rel_bank is not None:
        check_shape(OP, "rel_bank", weights.rel_bank, ("d_rel", "extent"))
        check_shape(OP, "r", x.r, (num_rows, num_heads, weights.rel_bank.shape[0]))


def _check_arena(
    name: str,
    arena: Ring | Pages,
    heads: tuple[int, ...],
    weights: AttentionWeights,
    rows: RowBatch,
) -> None:
    check_shape(OP, f"state.{name}", arena.data, ("S", "positions", *heads))
    whole = arena.page_size if isinstance(arena, Pages) else arena.capacity
    if whole % LEAF:
        raise ValueError(f"{OP}: state.{name} must hold whole leaves of {LEAF} keys, got {whole}")
    pinned, window = arena.pinned, weights.window
    if pinned % LEAF or pinned < weights.num_sink_tokens:
        raise ValueError(
            f"{OP}: state.{name} must pin whole leaves of {LEAF} keys for "
            f"{weights.num_sink_tokens} sinks, got {pinned} pinned; build the arena for as many"
        )
    if rows.on_host:
        longest = rows.longest
    elif rows.max_line_rows is None:
        return
    else:
        longest = rows.max_line_rows
    turning = arena.capacity - pinned
    if window + longest - 1 > turning:
        raise ValueError(
            f"{OP}: a line brings {longest} rows, but state.{name} keeps {turning} "
            f"positions, room for {turning - window + 1} beside a window of {window}; cut "
            f"the line or build the arena with a larger max_rows_per_tick"
        )


def streaming_attention(
    x: AttentionInputs,
    weights: AttentionWeights,
    state: KVState | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[i, h] = sum over visible j of softmax_j(logit[i, j, h]) * v[j, g], where
    logit[i, j, h] = tau_i * (scale * q[i, h] . k[j, g] + (r[i, h] . rel_bank[:, i - j] if
    i - j < min(extent, window) else 0)), g = h // (H / Hkv), j <= i is visible iff i - j < window
    or j < num_sink_tokens, and
    tau_i = 1 + log_alpha * ln(max(1, min(i + 1, window + num_sink_tokens) / log_floor)).

    x       AttentionInputs: q [T, H, D], k and v [T, Hkv, D], r [T, H, d_rel] or None, any float
            dtype; i and j above are absolute positions in a row's own stream. k and v None: the
            arenas already hold those of the rows
    weights AttentionWeights; with rope_theta, q and k are turned here, before k is kept
    state   KVState, arenas as `kv_specs` declares them: k and v of the rows are written at their
            positions, then all visible positions are read. No gradient. None: every line is a whole
            sequence with nothing before it, and the result is differentiable
    rows    what each row is; rows of lines that do not run come back as zeros
    out     [T, H, D], dtype of q; allocated when None. Softmax and sums are fp32

    Sinks: the first num_sink_tokens keys of a stream stay visible behind the window, beside its
    keys, and tau counts them. There they have no bias: their place in the cache is behind the
    window for every query, as StreamingLLM counts it (arXiv 2309.17453), and so is their distance.
    With rope a sink would have to be turned to its place in the cache for each query; that is not
    done, and the two are refused together. A learned logit beside the keys' is not meant.

    Bits: leaves of 128 keys, left-aligned to absolute position, each met by tiles of 8 queries;
    partials (maximum, sum, values) merge in groups of 8 leaves, groups merge from left to right. A
    row's bits depend neither on its batch nor on how its stream was cut, as long as the line's own
    keys and values are finite. Leaves that a row does not see, also those between sinks and
    window, change nothing.

    Source: spec/inkling.md 1.2, spec/interaction.md 1 (visible keys), spec/moshi-mimi.md 3.1
    (rope). Raises ValueError on shapes, on a bias with only one of its two parts, on sinks with
    rope or in arenas that do not pin them, and on a line with more rows than the arenas keep beside
    the window.
    """
    check_shape(OP, "q", x.q, ("T", "H", "D"))
    num_kv_heads = _num_kv_heads(x, state)
    _check_inputs(x, weights, num_kv_heads)
    check_rows(OP, rows, x.q.shape[0])
    if state is not None:
        heads = (num_kv_heads, x.q.shape[2])
        _check_arena("k", state.k, heads, weights, rows)
        _check_arena("v", state.v, heads, weights, rows)
        run = pick(OP, x.q.device, streaming_attention_reference)
    else:
        run = streaming_attention_reference
    return run(x, weights, state, rows, out=out)
