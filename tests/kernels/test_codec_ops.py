"""The codec's ops: values against torch in fp64, bits against cuts and batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import Ring, Twice
from microturn.kernels.causal_conv import ConvWeights, causal_conv
from microturn.kernels.causal_conv.reference import elu
from microturn.kernels.codec_transformer import codec_transformer
from microturn.kernels.codec_transformer.cases import make_inputs as transformer_inputs
from microturn.kernels.conv_transpose import ConvTransposeWeights, conv_transpose
from microturn.kernels.registry import OPS
from microturn.kernels.residual_unit import residual_unit
from microturn.kernels.rows import RowBatch
from microturn.kernels.rvq_dequantize import rvq_dequantize
from microturn.kernels.rvq_dequantize.cases import make_inputs as dequantize_inputs
from microturn.kernels.rvq_quantize import rvq_quantize
from microturn.kernels.rvq_quantize.cases import make_inputs as quantize_inputs
from microturn.kernels.streaming_attention import KVState
from microturn.kernels.testing import assert_bitwise_equal, assert_close

CARRYING = ("causal_conv", "conv_transpose", "residual_unit")
SHAPES = [
    (op, case)
    for op in CARRYING
    for case in OPS[op].cases
    if case.S and "nothing" not in case.reason
]


def ids(value: Any) -> str:
    return value if isinstance(value, str) else str(value.id)


def fresh_state(state: Twice, num_slots: int) -> Twice:
    """Arenas as a runtime allocates them: whatever was there, here NaN."""
    data = torch.full((2, num_slots, *state.data.shape[2:]), float("nan"))
    return Twice(data, torch.zeros(num_slots, dtype=torch.int64))


def flip(state: Twice, slots: Sequence[int]) -> None:
    for slot in slots:
        state.parity[slot] = 1 - state.parity[slot]


def per_row(op: str, weights: Any) -> tuple[int, int]:
    """(rows out, rows in) of one unit of work."""
    stride = getattr(weights, "stride", 1)
    return (stride, 1) if op == "conv_transpose" else (1, stride)


def stream(
    op: str, weights: Any, state: Twice, sequences: dict[int, Tensor], unit: int, seed: int
) -> dict[int, Tensor]:
    """Every sequence through `op` in random cuts, random subsets of slots in each call."""
    choose = random.Random(seed)
    done = dict.fromkeys(sequences, 0)
    parts: dict[int, list[Tensor]] = {slot: [] for slot in sequences}
    while any(done[s] < len(sequences[s]) for s in sequences):
        ready = [s for s in sequences if done[s] < len(sequences[s]) and choose.random() < 0.7]
        choose.shuffle(ready)
        equal = choose.random() < 0.5
        common = choose.randint(1, 4)
        counts = [
            min(unit * (common if equal else choose.randint(1, 4)), len(sequences[s]) - done[s])
            for s in ready
        ]
        if not ready:
            continue
        rows = RowBatch.build(ready, counts, [done[s] for s in ready])
        x = torch.cat(
            [sequences[s][done[s] : done[s] + c] for s, c in zip(ready, counts, strict=True)]
        )
        y = OPS[op].run(x, weights, state, rows)
        out, into = per_row(op, weights)
        pieces = y.split([c * out // into for c in counts])
        for slot, count, piece in zip(ready, counts, pieces, strict=True):
            parts[slot].append(piece)
            done[slot] += count
        flip(state, ready)
    return {slot: torch.cat(parts[slot]) for slot in sequences}


@pytest.mark.parametrize(("op", "case"), SHAPES, ids=ids)
@torch.no_grad()
def test_any_cut_in_any_company_gives_the_bits_of_the_whole_sequence(op: str, case: Any) -> None:
    x, weights, state, _ = OPS[op].make_inputs(case)
    _, unit = per_row(op, weights)
    sequences = {
        slot: torch.randn(unit * length, x.shape[1]) for slot, length in ((2, 23), (0, 9), (1, 17))
    }
    got = stream(op, weights, fresh_state(state, 3), sequences, unit, seed=3)
    for slot, whole in sequences.items():
        assert_bitwise_equal(got[slot], OPS[op].run(whole, weights, None, None), f"slot {slot}")


def plain_conv(x: Tensor, weights: ConvWeights) -> Tensor:
    """One sequence [L, Cin] in fp64 through torch's convolution."""
    wide = x.double().T[None]
    if weights.elu:
        wide = F.elu(wide)
    mode = "replicate" if weights.pad == "replicate" else "constant"
    wide = F.pad(wide, (weights.history, 0), mode=mode)
    bias = None if weights.bias is None else weights.bias.double()
    return F.conv1d(wide, weights.weight.double().permute(0, 2, 1), bias, weights.stride)[0].T


def plain_transpose(x: Tensor, weights: ConvTransposeWeights) -> Tensor:
    wide = x.double().T[None]
    if weights.elu:
        wide = F.elu(wide)
    bias = None if weights.bias is None else weights.bias.double()
    kernel = weights.weight.double()
    if kernel.dim() == 2:
        y = F.conv_transpose1d(
            wide, kernel.T[:, None], bias, weights.stride, groups=kernel.shape[1]
        )
    else:
        y = F.conv_transpose1d(wide, kernel.permute(2, 1, 0), bias, weights.stride)
    return y[0].T[: len(x) * weights.stride]


@pytest.mark.parametrize("case", OPS["causal_conv"].cases, ids=ids)
def test_causal_conv_is_a_padded_convolution(case: Any) -> None:
    x, weights, _, _ = OPS["causal_conv"].make_inputs(case)
    if case.S:
        x = x[: case.L]
        assert_close(causal_conv(x, weights), plain_conv(x, weights), 1e-6)


@pytest.mark.parametrize("case", OPS["conv_transpose"].cases, ids=ids)
def test_conv_transpose_is_a_trimmed_transposed_convolution(case: Any) -> None:
    x, weights, _, _ = OPS["conv_transpose"].make_inputs(case)
    if case.S:
        x = x[: case.L]
        assert_close(conv_transpose(x, weights), plain_transpose(x, weights), 1e-6)


@pytest.mark.parametrize("case", OPS["residual_unit"].cases, ids=ids)
def test_residual_unit_is_two_convolutions_beside_the_identity(case: Any) -> None:
    x, weights, _, _ = OPS["residual_unit"].make_inputs(case)
    if case.S:
        x = x[: case.L]
        inner = plain_conv(x, weights.inner)
        want = x + plain_conv(inner, replace(weights.outer, weight=weights.outer.weight.double()))
        assert_close(residual_unit(x, weights), want, 1e-6)


@pytest.mark.parametrize("op", CARRYING)
@torch.no_grad()
def test_lines_that_do_not_run_change_nothing_and_are_zeros(op: str) -> None:
    case = SHAPES[[name for name, _ in SHAPES].index(op)][1]
    x, weights, state, _ = OPS[op].make_inputs(case)
    out, into = per_row(op, weights)
    state = fresh_state(state, 4)
    counts = [2 * into, into, 3 * into]
    rows = RowBatch.build([3, -1, 0], counts, [0, 0, 0], exec_mask=[True, True, False])
    x = torch.randn(sum(counts), x.shape[1])
    x[counts[0] :] = float("nan")
    y = OPS[op].run(x, weights, state, rows)
    assert_bitwise_equal(y[: 2 * out], OPS[op].run(x[: counts[0]], weights, None, None))
    assert int(y[2 * out :].count_nonzero()) == 0
    written = [bool(torch.isfinite(state.data[:, slot]).any()) for slot in range(4)]
    assert written == [False, False, False, True]
    assert bool(state.data[0, 3].isnan().all()), "the committed copy may not be written"


@pytest.mark.parametrize("op", CARRYING)
@torch.no_grad()
def test_a_call_that_was_not_committed_can_be_repeated(op: str) -> None:
    case = SHAPES[[name for name, _ in SHAPES].index(op)][1]
    x, weights, state, rows = OPS[op].make_inputs(case)
    first = OPS[op].run(x, weights, state, rows)
    OPS[op].run(torch.randn_like(x), weights, state, rows)
    assert_bitwise_equal(OPS[op].run(x, weights, state, rows), first)


@torch.no_grad()
def test_a_bias_kept_in_the_overlap_is_caught() -> None:
    """The control: bias in the tail counts twice where two calls meet."""
    case = OPS["conv_transpose"].cases[2]
    x, weights, state, _ = OPS["conv_transpose"].make_inputs(case)
    x = torch.randn(6, x.shape[1])
    whole = conv_transpose(x, weights)
    spoiled = fresh_state(state, 1)
    parts = []
    for start in range(0, 6, 2):
        rows = RowBatch.build([0], [2], [start])
        parts.append(conv_transpose(x[start : start + 2], weights, spoiled, rows))
        flip(spoiled, [0])
        spoiled.data[spoiled.parity[0], 0] += weights.bias.repeat(weights.stride)
    with pytest.raises(AssertionError):
        assert_close(torch.cat(parts), whole, 1e-3)


def test_a_dropped_replicate_pad_is_caught() -> None:
    case = next(case for case in OPS["causal_conv"].cases if case.replicate)
    x, weights, _, _ = OPS["causal_conv"].make_inputs(case)
    with pytest.raises(AssertionError):
        assert_close(causal_conv(x, replace(weights, pad="zero")), plain_conv(x, weights), 1e-3)


def cut(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    return torch.cat([function(part) for part in x.split(size)])


def test_elu_keeps_its_bits_however_its_input_is_cut() -> None:
    x = 3 * torch.randn(4097)
    assert_close(elu(x), F.elu(x.double()), 1e-6)
    for size in (1, 3, 8, 16, 17, 48, 1000):
        assert_bitwise_equal(cut(elu, x, size), elu(x))


def test_an_elu_whose_last_vector_rounds_differently_is_caught() -> None:
    """As torch's own does on some CPUs."""

    def spoiled(x: Tensor) -> Tensor:
        whole = x.numel() // 16 * 16
        return torch.cat([elu(x[:whole]), elu(x[whole:].double()).float() * (1 + 2**-23)])

    x = 3 * torch.randn(4097)
    with pytest.raises(AssertionError):
        assert_bitwise_equal(cut(spoiled, x, 24), spoiled(x))


def test_elu_of_large_values_has_gradients() -> None:
    x = torch.tensor([-200.0, -1.0, 0.0, 1.0, 200.0], requires_grad=True)
    elu(x).sum().backward()
    assert_close(
        x.grad,
        torch.tensor([0.0, -1.0, 0.0, 0.0, 0.0]).exp() * torch.tensor([0.0, 1, 1, 1, 1]),
        1e-6,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("op", CARRYING)
def test_gradients_are_those_of_torchs_convolutions(op: str) -> None:
    case = SHAPES[[name for name, _ in SHAPES].index(op)][1]
    x, weights, _, _ = OPS[op].make_inputs(case, dtype=torch.float64)
    first = weights.inner.weight if op == "residual_unit" else weights.weight
    x, first = x.requires_grad_(), first.requires_grad_()
    OPS[op].run(x, weights, None, None).square().sum().backward()
    got = [x.grad.clone(), first.grad.clone()]
    x.grad = first.grad = None
    if op == "causal_conv":
        y = plain_conv(x, weights)
    elif op == "conv_transpose":
        y = plain_transpose(x, weights)
    else:
        y = x + plain_conv(plain_conv(x, weights.inner), weights.outer)
    y.square().sum().backward()
    for mine, want in zip(got, (x.grad, first.grad), strict=True):
        assert_close(mine, want, 1e-10)


def test_wrong_arguments_say_what_is_wanted() -> None:
    weights = ConvWeights(torch.randn(8, 4, 16), None, stride=2)
    rows = RowBatch.build([0], [4], [0])
    state = Twice(torch.zeros(2, 1, 2, 16), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must be \[T, 16\], got \[4, 12\]"):
        causal_conv(torch.randn(4, 12), weights, state, rows)
    with pytest.raises(ValueError, match="multiple of 2 rows, got 3"):
        causal_conv(torch.randn(3, 16), weights, state, RowBatch.build([0], [3], [0]))
    with pytest.raises(ValueError, match=r"state must hold \[2, 16\] a slot, got \[3, 16\]"):
        causal_conv(
            torch.randn(4, 16), weights, replace(state, data=torch.zeros(2, 1, 3, 16)), rows
        )
    with pytest.raises(ValueError, match="state needs rows"):
        causal_conv(torch.randn(4, 16), weights, state)
    with pytest.raises(ValueError, match="describes 4 rows, the input has 6"):
        causal_conv(torch.randn(6, 16), weights, state, rows)
    with pytest.raises(ValueError, match="at least as long as the stride"):
        causal_conv(torch.randn(4, 16), replace(weights, stride=5))
    with pytest.raises(ValueError, match="multiple of the stride, got kernel 4 and stride 3"):
        conv_transpose(torch.randn(4, 16), ConvTransposeWeights(torch.randn(4, 8, 16), None, 3))
    with pytest.raises(TypeError, match="float64"):
        causal_conv(torch.randn(4, 16, dtype=torch.float64), weights)


@pytest.mark.parametrize("case", OPS["rvq_dequantize"].cases, ids=ids)
def test_dequantize_adds_the_projected_groups(case: Any) -> None:
    codes, weights, _, _ = dequantize_inputs(case)
    want = torch.zeros(case.T, case.D, dtype=torch.float64)
    for t in range(case.T):
        for q in range(case.q):
            project = weights.semantic if q == 0 else weights.acoustic
            want[t] += project.double() @ weights.tables[q, codes[t, q]].double()
    assert_close(rvq_dequantize(codes, weights), want, 1e-6)


def test_codes_out_of_range_are_refused_only_where_they_run() -> None:
    codes, weights, _, _ = dequantize_inputs(OPS["rvq_dequantize"].cases[1])
    size = weights.tables.shape[1]
    for bad in (-1, size):
        spoiled = codes.clone()
        spoiled[1, 2] = bad
        with pytest.raises(ValueError, match=rf"codes must lie in 0\.\.{size - 1}"):
            rvq_dequantize(spoiled, weights)
        rows = RowBatch.build([0, 1], [1, 1], [5, 5], exec_mask=[True, False])
        y = rvq_dequantize(spoiled, weights, None, rows)
        with torch.no_grad():
            assert_bitwise_equal(y[:1], rvq_dequantize(codes, weights)[:1])
        assert int(y[1].count_nonzero()) == 0
    with pytest.raises(ValueError, match="1 to 4 books, got 5"):
        rvq_dequantize(torch.zeros(2, 5, dtype=torch.int64), weights)


@pytest.mark.parametrize("case", OPS["rvq_quantize"].cases, ids=ids)
def test_quantize_takes_the_nearest_row_of_what_is_left(case: Any) -> None:
    x, weights, _, _ = quantize_inputs(case)
    codes = rvq_quantize(x, weights)
    assert codes.shape == (case.T, case.Q)
    for t in range(case.T):
        left = weights.semantic.double() @ x[t].double()
        for q in range(case.Q):
            if q == 1:
                left = weights.acoustic.double() @ x[t].double()
            table = weights.tables[q].double()
            assert int(codes[t, q]) == int((table - left).norm(dim=1).argmin())
            left = left - table[codes[t, q]]


@torch.no_grad()
def test_codes_and_latents_do_not_depend_on_the_batch() -> None:
    x, weights, _, _ = quantize_inputs(OPS["rvq_quantize"].cases[2])
    x = torch.randn(37, x.shape[1])
    alone = torch.cat([rvq_quantize(x[t : t + 1], weights) for t in range(37)])
    assert_bitwise_equal(rvq_quantize(x, weights), alone)
    rows = RowBatch.build([0, 1], [36, 1], [0, 0], exec_mask=[True, False])
    assert rvq_quantize(x, weights, None, rows)[36].tolist() == [0] * weights.tables.shape[0]
    _, weights, _, _ = dequantize_inputs(OPS["rvq_dequantize"].cases[2])
    codes = torch.randint(weights.tables.shape[1], (37, 8))
    alone = torch.cat([rvq_dequantize(codes[t : t + 1], weights) for t in range(37)])
    assert_bitwise_equal(rvq_dequantize(codes, weights), alone)


def test_dequantize_trains_its_books() -> None:
    codes, weights, _, _ = dequantize_inputs(OPS["rvq_dequantize"].cases[1])
    tables = weights.tables.requires_grad_()
    rvq_dequantize(codes, weights).sum().backward()
    touched = tables.grad.abs().sum(-1) > 0
    assert touched.nonzero().tolist() == sorted(
        [q, c] for t in codes.tolist() for q, c in enumerate(t)
    )


def plain_transformer(x: Tensor, weights: Any) -> Tensor:
    """One sequence [L, D] in fp64, written out."""
    x = x.double()
    length, width = x.shape
    heads = weights.num_heads
    dim = width // heads
    frequency = weights.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turn = torch.polar(
        torch.ones(1, dtype=torch.float64), torch.arange(length)[:, None] * frequency
    )
    gap = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (gap < 0) | (gap >= weights.window)
    for layer in weights.layers:
        w = {name: value.double() for name, value in vars(layer).items()}
        y = F.layer_norm(x, (width,), w["norm1_gain"], w["norm1_bias"], weights.eps)
        q, k, v = (part.view(length, heads, dim) for part in (y @ w["in_proj"].T).chunk(3, -1))
        q, k = (
            torch.view_as_real(
                torch.view_as_complex(z.unflatten(-1, (-1, 2))) * turn[:, None]
            ).flatten(-2)
            for z in (q, k)
        )
        logits = torch.einsum("ihd,jhd->hij", q, k) / dim**0.5
        shares = logits.masked_fill(hidden, float("-inf")).softmax(-1)
        heard = torch.einsum("hij,jhd->ihd", shares, v).reshape(length, width)
        x = x + w["scale1"] * (heard @ w["out_proj"].T)
        y = F.layer_norm(x, (width,), w["norm2_gain"], w["norm2_bias"], weights.eps)
        x = x + w["scale2"] * (F.gelu(y @ w["ff_in"].T) @ w["ff_out"].T)
    return x


def test_transformer_matches_the_layers_written_out() -> None:
    x, weights, _, _ = transformer_inputs(OPS["codec_transformer"].cases[3])
    x = torch.randn(70, x.shape[1])
    assert_close(codec_transformer(x, weights), plain_transformer(x, weights), 1e-5)
    with pytest.raises(AssertionError):
        wider = replace(weights, window=weights.window + 1)
        assert_close(codec_transformer(x, wider), plain_transformer(x, weights), 1e-5)


def transformer_state(state: Sequence[KVState], num_slots: int) -> list[KVState]:
    def ring(old: Ring) -> Ring:
        return Ring(torch.full((num_slots, *old.data.shape[1:]), float("nan")))

    return [KVState(ring(kv.k), ring(kv.v)) for kv in state]


@torch.no_grad()
def test_transformer_keeps_its_bits_under_cuts_and_company() -> None:
    x, weights, state, _ = transformer_inputs(OPS["codec_transformer"].cases[3])
    width = x.shape[1]
    sequences = {1: torch.randn(150, width), 0: torch.randn(60, width)}
    runs = []
    for cut_sizes in ((5, 5), (1, 4), (3, 2)):
        fresh = transformer_state(state, 2)
        done, parts = {1: 0, 0: 0}, {1: [], 0: []}  # type: ignore[var-annotated]
        while done[1] < 150:
            lines = [(s, n) for s, n in zip((1, 0), cut_sizes, strict=True)]
            lines = [(s, min(n, len(sequences[s]) - done[s])) for s, n in lines]
            rows = RowBatch.build(*zip(*[(s, n, done[s]) for s, n in lines], strict=True))
            feed = torch.cat([sequences[s][done[s] : done[s] + n] for s, n in lines])
            y = codec_transformer(feed, weights, fresh, rows).split([n for _, n in lines])
            for (slot, count), piece in zip(lines, y, strict=True):
                parts[slot].append(piece)
                done[slot] += count
        runs.append({slot: torch.cat(pieces) for slot, pieces in parts.items()})
    for other in runs[1:]:
        for slot in (0, 1):
            assert_bitwise_equal(other[slot][:60], runs[0][slot][:60])
    assert_bitwise_equal(runs[1][1], runs[0][1])
    whole = codec_transformer(sequences[1], weights)
    assert_close(runs[0][1], whole, 1e-5)


@torch.no_grad()
def test_transformer_lines_that_do_not_run_are_zeros() -> None:
    x, weights, state, _ = transformer_inputs(OPS["codec_transformer"].cases[3])
    fresh = transformer_state(state, 2)
    rows = RowBatch.build([0, 1], [2, 2], [0, 0], exec_mask=[True, False])
    feed = torch.randn(4, x.shape[1])
    feed[2:] = float("nan")
    y = codec_transformer(feed, weights, fresh, rows)
    assert bool(torch.isfinite(y).all())
    assert int(y[2:].count_nonzero()) == 0
    assert bool(fresh[0].k.data[1].isnan().all())


def test_transformer_refuses_a_state_for_another_depth() -> None:
    x, weights, state, rows = transformer_inputs(OPS["codec_transformer"].cases[1])
    with pytest.raises(ValueError, match="2 layers want as many states, got 1"):
        codec_transformer(x, weights, state[:1], rows)
