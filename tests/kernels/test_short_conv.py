"""short_conv: values against a loop, bits against cuts of the stream and company in the batch."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from microturn.kernels.arena import Ring
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv import short_conv, short_conv_spec
from microturn.kernels.short_conv.cases import CASES, ShortConvCase, make_inputs
from microturn.kernels.short_conv.reference import core
from microturn.kernels.short_conv.whole import convolve_whole
from microturn.kernels.testing import assert_bitwise_equal, assert_close, error_ratio

C, K = 32, 4


def arena(num_slots: int = 4, max_rows: int = 8) -> Ring:
    spec = short_conv_spec("conv", C, K, max_rows, "rows")
    return Ring(torch.full((num_slots, spec.capacity, C), float("nan")))


def naive(sequence: Tensor, weights: Tensor, residual: bool = True) -> Tensor:
    """sequence [T, C] from position 0, in fp64."""
    x, w = sequence.double(), weights.double()
    y = torch.zeros_like(x)
    for t in range(x.shape[0]):
        y[t] = x[t] if residual else 0
        for m in range(w.shape[1]):
            if t - w.shape[1] + 1 + m >= 0:
                y[t] += w[:, m] * x[t - w.shape[1] + 1 + m]
    return y


def stream(sequence: Tensor, weights: Tensor, cuts: list[int], ring: Ring, slot: int) -> Tensor:
    outs, at = [], 0
    for count in cuts:
        rows = RowBatch.build([slot], [count], [at])
        outs.append(short_conv(sequence[at : at + count], weights, ring, rows))
        at += count
    assert at == sequence.shape[0]
    return torch.cat(outs)


def random_cuts(total: int, most: int) -> list[int]:
    cuts: list[int] = []
    while total:
        cuts.append(min(total, random.randint(1, most)))
        total -= cuts[-1]
    return cuts


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_case_matches_a_loop(case: ShortConvCase) -> None:
    x, weights, state, rows = make_inputs(case)
    before = state.data.clone()
    got = short_conv(x, weights, state, rows)
    for line in rows.lines:
        old = range(max(0, line.position - case.K + 1), line.position)
        taps = [before[line.slot, p % state.capacity] for p in old]
        whole = torch.cat([*(t[None] for t in taps), x[line.start : line.stop]])
        assert_close(got[line.start : line.stop], naive(whole, weights)[len(taps) :], 1e-6)
    assert got.shape == x.shape


def test_any_cut_gives_the_bits_of_the_whole_sequence() -> None:
    sequence, weights = torch.randn(61, C), torch.randn(C, K)
    whole = core(sequence, weights)
    assert_close(whole, naive(sequence, weights), 1e-6)
    for slot in range(4):
        cuts = random_cuts(61, 8)
        assert_bitwise_equal(stream(sequence, weights, cuts, arena(), slot), whole)


def test_without_state_every_line_starts_from_nothing() -> None:
    counts = [5, 7, 5, 3]
    x, weights = torch.randn(20, C), torch.randn(C, K)
    rows = RowBatch.build([0, 1, 2, -1], counts, [0, 0, 0, 0])
    got = short_conv(x, weights, None, rows)
    for line in rows.lines:
        part = slice(line.start, line.stop)
        assert_bitwise_equal(got[part], core(x[part], weights))
    assert not got[17:].any()


def test_lines_out_of_step_give_the_bits_they_give_alone() -> None:
    weights, shared = torch.randn(C, K), arena(5)
    sequences = [torch.randn(40, C) for _ in range(3)]
    want = [core(s, weights) for s in sequences]
    at = [0, 0, 0]
    for _ in range(12):
        counts = [min(random.randint(0, 6), 40 - a) for a in at]
        rows = RowBatch.build([3, 0, 4], counts, at)
        x = torch.cat([s[a : a + c] for s, a, c in zip(sequences, at, counts, strict=True)])
        got = short_conv(x, weights, shared, rows).split(counts)
        for i, part in enumerate(got):
            assert_bitwise_equal(part, want[i][at[i] : at[i] + counts[i]])
            at[i] += counts[i]


def test_lines_that_do_not_run_change_nothing() -> None:
    weights, ring = torch.randn(C, K), arena()
    stream(torch.randn(9, C), weights, [4, 5], ring, 1)
    before = ring.data.clone()
    rows = RowBatch.build([1, -1], [3, 2], [9, 0], exec_mask=[False, True])
    out = short_conv(torch.randn(5, C), weights, ring, rows)
    assert not out.any()
    assert torch.equal(ring.data.nan_to_num(7.0), before.nan_to_num(7.0))


def test_the_next_tenant_sees_nothing_of_the_last() -> None:
    weights, ring = torch.randn(C, K), arena()
    stream(torch.full((30, C), float("nan")), weights, [8, 8, 8, 6], ring, 2)
    sequence = torch.randn(10, C)
    got = stream(sequence, weights, [1, 2, 7], ring, 2)
    assert_bitwise_equal(got, core(sequence, weights))


def test_rows_of_a_failed_tick_are_overwritten() -> None:
    weights, ring = torch.randn(C, K), arena()
    sequence = torch.randn(20, C)
    stream(sequence[:10], weights, [5, 5], ring, 0)
    short_conv(torch.full((8, C), float("nan")), weights, ring, RowBatch.build([0], [8], [10]))
    got = short_conv(sequence[10:13], weights, ring, RowBatch.build([0], [3], [10]))
    assert_bitwise_equal(got, core(sequence, weights)[10:13])


def test_the_comparison_fails_when_a_term_is_missing() -> None:
    sequence, weights = torch.randn(12, C), torch.randn(C, K)
    got = stream(sequence, weights, [5, 7], arena(), 0)
    assert error_ratio(got, naive(sequence, weights, residual=False)) > 1e-2
    assert error_ratio(got, naive(sequence, weights.flip(1))) > 1e-2
    assert error_ratio(got[5:], naive(sequence[5:], weights)) > 1e-2


def test_gradients_are_those_of_the_loop() -> None:
    sequence = torch.randn(6, C, requires_grad=True)
    weights = torch.randn(C, K, requires_grad=True)
    rows = RowBatch.build([0, 1], [3, 3], [0, 0])
    short_conv(sequence, weights, None, rows).square().sum().backward()
    copies = [t.detach().double().requires_grad_() for t in (sequence, weights)]
    w = copies[1]
    loss = torch.zeros((), dtype=torch.float64)
    for part in copies[0].split(3):
        for t in range(3):
            taps = [w[:, K - 1 - d] * part[t - d] for d in range(t + 1)]
            loss = loss + (part[t] + torch.stack(taps).sum(0)).square().sum()
    loss.backward()
    for tensor, copy in zip((sequence, weights), copies, strict=True):
        assert tensor.grad is not None and copy.grad is not None
        assert_close(tensor.grad, copy.grad, 1e-6)


def test_half_precision_is_summed_in_fp32() -> None:
    sequence, weights = torch.randn(9, C).bfloat16(), torch.randn(C, K).bfloat16()
    ring = Ring(arena().data.bfloat16())
    got = stream(sequence, weights, [4, 5], ring, 0)
    assert_bitwise_equal(got, core(sequence, weights))
    assert_bitwise_equal(got, core(sequence.float(), weights.float()).bfloat16())


def test_bad_input_says_what_is_wanted() -> None:
    rows = RowBatch.build([0], [3], [0])
    with pytest.raises(ValueError, match=r"weights must be \[32, K\], got \[16, 4\]"):
        short_conv(torch.randn(3, C), torch.randn(16, K), arena(), rows)
    with pytest.raises(ValueError, match="rows describes 3 rows, the input has 2"):
        short_conv(torch.randn(2, C), torch.randn(C, K), arena(), rows)
    with pytest.raises(ValueError, match="takes 13 at kernel size 4"):
        long = RowBatch.build([0], [14], [0])
        short_conv(torch.randn(14, C), torch.randn(C, K), arena(), long)


def test_out_is_used() -> None:
    x, weights, state, rows = make_inputs(CASES[2])
    out = torch.empty_like(x)
    assert short_conv(x, weights, state, rows, out=out) is out
    assert_bitwise_equal(out, short_conv(x, weights, state, rows))


def test_packed_lines_have_the_values_and_gradients_of_each_alone() -> None:
    draw = torch.Generator().manual_seed(4)
    counts = [5, 1, 3, 2]
    rows = RowBatch.build(range(4), counts, [0] * 4)
    x = torch.randn(sum(counts), 6, generator=draw).requires_grad_()
    weights = torch.randn(6, 4, generator=draw).requires_grad_()
    up = torch.randn(sum(counts), 6, generator=draw)
    alone = torch.cat([core(line, weights) for line in x.split(counts)])
    packed = convolve_whole(x, weights, rows)
    assert_close(packed.detach(), alone.detach(), 1e-6)
    for got, truth in zip(
        torch.autograd.grad(packed, (x, weights), up),
        torch.autograd.grad(alone, (x, weights), up),
        strict=True,
    ):
        assert_close(got, truth, 1e-5)
    whole = RowBatch.build([0], [sum(counts)], [0])
    assert not torch.allclose(convolve_whole(x, weights, whole), alone)
