"""The prologue and the attend as one subject of the bench."""

from __future__ import annotations

import pytest
import torch

from microturn.bench.prologue_attention import CASES, PrologueAttentionCase, make_inputs, run
from microturn.bench.providers import microturn, reference
from microturn.bench.providers.base import Provider
from microturn.bench.subjects import get
from microturn.kernels.qkvr_prologue import qkvr_prologue
from microturn.kernels.streaming_attention import AttentionInputs, streaming_attention
from microturn.kernels.testing import assert_bitwise_equal, assert_close, to_device


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@torch.inference_mode()
def test_it_is_the_attend_over_what_the_prologue_keeps(case: PrologueAttentionCase) -> None:
    x, weights, state, rows = make_inputs(case)
    other = to_device(state, "cpu")
    got = run(x, weights, state, rows)
    assert bool(torch.isfinite(got).all())
    made = qkvr_prologue(x, weights.prologue, other, rows)
    k, v = (a.read(rows.run_slots, rows.run_positions) for a in (other.kv.k, other.kv.v))
    appended = AttentionInputs(made.q, k, v, made.r)
    assert_close(got, streaming_attention(appended, weights.attend, other.kv, rows), 1e-6)
    changed = run(2 * x, weights, state, rows)
    assert not torch.equal(changed, got)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_it_costs_less_than_its_parts_and_more_than_either(case: PrologueAttentionCase) -> None:
    parts = (case.prologue, case.attend)
    assert case.flops == sum(part.flops for part in parts)
    for widths in ((4, None), (2, 1)):
        costs = [part.bytes(*widths) for part in parts]
        assert max(costs) < case.bytes(*widths) < sum(costs)


@pytest.mark.parametrize("provider", (*microturn.PROVIDERS, *reference.PROVIDERS))
@torch.inference_mode()
def test_a_composition_is_computed_by_those_who_compute_ops(provider: Provider) -> None:
    inputs, again = make_inputs(CASES[0]), make_inputs(CASES[0])
    call = provider.prepare("prologue_attention", CASES[0], "fp32", inputs, torch.device("cpu"))
    assert_bitwise_equal(call(), run(*again))


def test_the_bench_finds_it() -> None:
    subject = get("prologue_attention")
    assert subject.dtypes == ("bf16", "fp8") and len(subject.bench_cases) == 2
