"""depth_head: values against an fp64 loop, codes against the sampling op, bits against company."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from microturn.kernels.depth_head import DepthInputs, DepthOutputs, DepthWeights, depth_head
from microturn.kernels.depth_head.cases import CASES, DepthCase, make_inputs
from microturn.kernels.depth_head.reference import core
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling import CODEBOOK_STREAM, SamplingParams, sampling
from microturn.kernels.testing import assert_bitwise_equal, assert_close, error_ratio

SMALL = DepthCase(11, 48, 64, 2, 4, 80, 6, 37, "several layers, steps and rows")


def naive(hidden: Tensor, text_ids: Tensor, codes: Tensor, w: DepthWeights) -> Tensor:
    """Every head, step and pair of steps on its own, in fp64."""

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean() + w.eps).sqrt() * gain.double()

    def product(matrix: Tensor, x: Tensor) -> Tensor:
        return matrix.double() @ x

    width = w.out.shape[-1] // w.num_heads
    frames = []
    for b in range(hidden.shape[0]):
        seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in w.qkv]
        logits = []
        for k in range(w.num_codebooks):
            table = w.code_tables[k - 1][codes[b, k - 1]] if k else w.text_table[text_ids[b]]
            x = product(w.hidden_in[k], hidden[b].double()) + table.double()
            for i in range(len(w.qkv)):
                q, key, value = product(w.qkv[i, k], norm(x, w.attention_gain[i])).chunk(3)
                seen[i].append((key, value))
                heads = []
                for h in range(w.num_heads):
                    part = slice(h * width, (h + 1) * width)
                    scores = torch.stack([q[part] @ past[part] for past, _ in seen[i]])
                    share = (scores / width**0.5).softmax(0)
                    values = [s * past[part] for s, (_, past) in zip(share, seen[i], strict=True)]
                    heads.append(torch.stack(values).sum(0))
                x = x + product(w.out[i, k], torch.cat(heads))
                gate, up = product(w.gate_up[i, k], norm(x, w.mlp_gain[i])).chunk(2)
                x = x + product(w.down[i, k], gate / (1 + (-gate).exp()) * up)
            logits.append(product(w.heads[k], x))
        frames.append(torch.stack(logits))
    return torch.stack(frames)


def greedy(inputs: DepthInputs) -> DepthInputs:
    zeros = torch.zeros_like(inputs.sampling.temperature)
    return dataclasses.replace(
        inputs, sampling=dataclasses.replace(inputs.sampling, temperature=zeros)
    )


def with_grad(weights: DepthWeights, dtype: torch.dtype) -> tuple[DepthWeights, list[Tensor]]:
    leaves = {
        name: value.detach().to(dtype, copy=True).requires_grad_()
        for name, value in vars(weights).items()
        if isinstance(value, Tensor)
    }
    return dataclasses.replace(weights, **leaves), list(leaves.values())  # type: ignore[arg-type]


def random_codes(batch: int, weights: DepthWeights) -> Tensor:
    return torch.randint(0, weights.codebook_size, (batch, weights.num_codebooks))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@torch.inference_mode()
def test_teacher_forced_logits_match_a_loop(case: DepthCase) -> None:
    x, weights, _, _ = make_inputs(case)
    codes = random_codes(case.B, weights)
    got = core(x.hidden, x.text_ids, codes, weights)
    assert got.shape == (case.B, case.Q, case.V)
    few = slice(0, 3)
    want = naive(x.hidden[few], x.text_ids[few], codes[few], weights) if case.B else got
    assert_close(got[few], want, 3e-6)


@torch.inference_mode()
def test_a_dropped_term_is_noticed() -> None:
    x, w, _, _ = make_inputs(SMALL)
    codes = random_codes(SMALL.B, w)
    got = core(x.hidden, x.text_ids, codes, w)
    swapped = torch.cat([w.gate_up[:, :, SMALL.G :], w.gate_up[:, :, : SMALL.G]], 2)
    for change in (
        {"hidden_in": w.hidden_in[:1].expand_as(w.hidden_in)},
        {"qkv": w.qkv.flip(1)},
        {"gate_up": swapped},
        {"num_heads": 2},
        {"eps": 1e-2},
    ):
        wrong = core(x.hidden, x.text_ids, codes, dataclasses.replace(w, **change))
        assert error_ratio(wrong, got) > 1e-4, change


@pytest.mark.parametrize("case", [*CASES, SMALL], ids=lambda c: c.id)
@torch.inference_mode()
def test_codes_are_what_sampling_draws_from_the_teacher_forced_logits(case: DepthCase) -> None:
    x, weights, state, rows = make_inputs(case)
    for inputs in (x, greedy(x)):
        got = depth_head(inputs, weights, state, rows)
        assert got.codes.shape == (case.B, case.Q)
        assert got.codes.dtype == torch.int64
        assert bool(got.finite.all())
        logits = core(x.hidden, x.text_ids, got.codes, weights)
        for q in range(case.Q):
            params = dataclasses.replace(inputs.sampling, stream=CODEBOOK_STREAM + q)
            assert torch.equal(got.codes[:, q], sampling(logits[:, q].contiguous(), params))


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_batch() -> None:
    for case in (dataclasses.replace(SMALL, B=64), dataclasses.replace(CASES[1], B=19)):
        x, weights, _, _ = make_inputs(case)
        codes = random_codes(case.B, weights)
        logits = core(x.hidden, x.text_ids, codes, weights)
        frames = depth_head(x, weights).codes
        for b in (0, 7, 8, 18):
            one = torch.tensor([b])
            alone = core(x.hidden[one], x.text_ids[one], codes[one], weights)
            assert_bitwise_equal(alone, logits[one])
            assert torch.equal(depth_head(x.take(one), weights).codes, frames[one])
        order = torch.randperm(case.B)
        moved = core(x.hidden[order], x.text_ids[order], codes[order], weights)
        assert_bitwise_equal(moved, logits[order])
        assert torch.equal(depth_head(x.take(order), weights).codes, frames[order])


@torch.inference_mode()
def test_a_code_changes_later_steps_and_no_earlier_one() -> None:
    x, weights, _, _ = make_inputs(SMALL)
    codes = random_codes(SMALL.B, weights)
    base = core(x.hidden, x.text_ids, codes, weights)
    for at in range(SMALL.Q):
        other = codes.clone()
        other[:, at] = (other[:, at] + 1) % SMALL.V
        moved = core(x.hidden, x.text_ids, other, weights)
        assert_bitwise_equal(moved[:, : at + 1], base[:, : at + 1])
        for later in range(at + 1, SMALL.Q):
            assert error_ratio(moved[:, later], base[:, later]) > 1e-3
    said = core(x.hidden, (x.text_ids + 1) % 40, codes, weights)
    assert all(error_ratio(said[:, q], base[:, q]) > 1e-3 for q in range(SMALL.Q))


def test_gradients_match_the_loop() -> None:
    case = dataclasses.replace(SMALL, B=2, Q=3)
    x, weights, _, _ = make_inputs(case)
    codes = random_codes(2, weights)
    found: list[Tensor | None] = []
    wanted: list[Tensor | None] = []
    for function, dtype, into in ((core, torch.float32, found), (naive, torch.float64, wanted)):
        trained, leaves = with_grad(weights, dtype)
        hidden = x.hidden.to(dtype, copy=True).requires_grad_()
        logits = function(hidden, x.text_ids, codes, trained)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()  # type: ignore[no-untyped-call]
        into.extend([leaf.grad for leaf in (*leaves, hidden)])
    for got, want in zip(found, wanted, strict=True):
        assert got is not None
        assert want is not None
        assert float(want.abs().max()) > 0
        assert_close(got, want, 1e-4)


@torch.inference_mode()
def test_a_row_that_is_not_finite_says_so_and_spoils_no_other() -> None:
    x, weights, _, _ = make_inputs(SMALL)
    clean = depth_head(x, weights)
    hidden = x.hidden.clone()
    hidden[3, 5] = float("nan")
    got = depth_head(dataclasses.replace(x, hidden=hidden), weights)
    others = torch.arange(SMALL.B) != 3
    assert got.finite.tolist() == others.tolist()
    assert torch.equal(got.codes[others], clean.codes[others])
    assert got.codes[3].tolist() == [0] * SMALL.Q


@torch.inference_mode()
def test_rows_that_do_not_run_are_zeros_and_out_is_used() -> None:
    x, weights, _, _ = make_inputs(SMALL)
    want = depth_head(x, weights)
    run = [b % 3 != 1 for b in range(SMALL.B)]
    slots = [-1 if b == 2 else b for b in range(SMALL.B)]
    rows = RowBatch.build(slots, [1] * SMALL.B, [4] * SMALL.B, exec_mask=run)
    hidden = x.hidden.clone()
    hidden[1] = float("nan")
    out = DepthOutputs(torch.full_like(want.codes, -7), torch.zeros_like(want.finite))
    got = depth_head(dataclasses.replace(x, hidden=hidden), weights, None, rows, out=out)
    assert got.codes is out.codes
    kept = torch.tensor([r and s >= 0 for r, s in zip(run, slots, strict=True)])
    assert torch.equal(got.codes, torch.where(kept[:, None], want.codes, 0))
    assert bool(got.finite.all())
    nobody = RowBatch.build([-1] * SMALL.B, [1] * SMALL.B, [0] * SMALL.B)
    assert int(depth_head(x, weights, None, nobody).codes.abs().sum()) == 0


@torch.inference_mode()
def test_draws_follow_seed_and_step_and_ignore_the_stream_given() -> None:
    x, weights, _, _ = make_inputs(SMALL)
    codes = depth_head(x, weights).codes

    def changed(**change: object) -> Tensor:
        params: SamplingParams = dataclasses.replace(x.sampling, **change)
        return depth_head(dataclasses.replace(x, sampling=params), weights).codes

    assert torch.equal(changed(stream=0), codes)
    assert not torch.equal(changed(seed=x.sampling.seed + 1), codes)
    assert not torch.equal(changed(step=x.sampling.step + 1), codes)


def test_bad_arguments_say_what_is_wanted() -> None:
    x, w, _, _ = make_inputs(SMALL)
    with pytest.raises(ValueError, match=r"depth_head: hidden must be \[B, 48\], got \[11, 32\]"):
        depth_head(dataclasses.replace(x, hidden=x.hidden[:, :32]), w)
    with pytest.raises(TypeError, match=r"text_ids must be torch.int64, got torch.int32"):
        depth_head(dataclasses.replace(x, text_ids=x.text_ids.int()), w)
    with pytest.raises(ValueError, match=r"step must be \[11\], got \[10\]"):
        params = dataclasses.replace(x.sampling, step=x.sampling.step[1:])
        depth_head(dataclasses.replace(x, sampling=params), w)
    with pytest.raises(IndexError):
        depth_head(dataclasses.replace(x, text_ids=x.text_ids + 40), w)
    with pytest.raises(ValueError, match=r"code_tables must be \[5, 37, 64\], got \[6, 37, 64\]"):
        dataclasses.replace(w, code_tables=torch.zeros(6, 37, 64))
    with pytest.raises(ValueError, match="5 heads do not divide the width 64"):
        dataclasses.replace(w, num_heads=5)
    with pytest.raises(ValueError, match="hidden width must be a multiple of 16, got 40"):
        dataclasses.replace(w, hidden_in=torch.zeros(6, 64, 40))
