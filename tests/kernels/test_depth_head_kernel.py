"""The Triton kernel of depth_head: logits, bits in any company, rows that do not run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from microturn.kernels import configs
from microturn.kernels.depth_head import DepthInputs, DepthWeights
from microturn.kernels.depth_head.cases import BENCH_CASES, CASES, DepthCase, make_inputs
from microturn.kernels.depth_head.launch import depth_head_kernel, with_logits
from microturn.kernels.depth_head.reference import core, depth_head_reference
from microturn.kernels.draw import Draw
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import (
    DTYPES,
    MAX_ERROR,
    assert_bitwise_equal,
    error_ratio,
    ordered_dots,
    to_device,
    wide,
)

SMALL = DepthCase(5, 48, 32, 2, 2, 80, 3, 37, "sizes that fill no tile, several layers and steps")


def drawn(case: DepthCase, device: str, dtype: str = "fp32") -> tuple[DepthInputs, DepthWeights]:
    """Inputs on the device; heads at full size whatever the dtype."""
    x, weights, _, _ = make_inputs(case, dtype=DTYPES[dtype])
    heads = Draw(1, DTYPES[dtype]).normal(*weights.heads.shape, scale=case.D**-0.5)
    weights = dataclasses.replace(weights, heads=heads)
    return to_device(x, device), to_device(weights, device)


def forced(x: DepthInputs, codes: Tensor, weights: DepthWeights) -> Tensor:
    """The reference's logits in fp32, given the codes."""
    x, codes, weights = to_device((x, codes, weights), "cpu")
    return core(x.hidden.float(), x.text_ids, codes, wide(weights))


@pytest.mark.parametrize("dtype", ["fp32", *(["bf16"] if torch.cuda.is_available() else ["fp16"])])
@torch.inference_mode()
def test_logits_are_the_reference_s_for_the_codes_drawn(dtype: str, device: str) -> None:
    x, weights = drawn(SMALL, device, dtype)
    made, logits = with_logits(x, weights)
    want = forced(x, made.codes, weights)
    assert error_ratio(logits.cpu(), want) <= MAX_ERROR[dtype]
    for step in range(SMALL.Q):
        assert error_ratio(logits[:, step].cpu(), want[:, step]) <= 2 * MAX_ERROR[dtype]


@torch.inference_mode()
def test_a_wrong_kernel_would_be_seen(device: str) -> None:
    """Logits under weights that a mistake in an index would read instead."""
    x, w = drawn(SMALL, device)
    made, logits = with_logits(x, w)
    right = logits.cpu()
    for change in (
        {"qkv": w.qkv.flip(1).contiguous()},
        {"out": w.out.flip(0).contiguous()},
        {"gate_up": w.gate_up.roll(1, 2).contiguous()},
        {"mlp_gain": w.mlp_gain.flip(0).contiguous()},
        {"code_tables": w.code_tables.flip(0).contiguous()},
        {"num_heads": 1},
        {"eps": 1e-2},
    ):
        wrong = forced(x, made.codes, dataclasses.replace(w, **change))
        assert error_ratio(right, wrong) > 10 * MAX_ERROR["fp32"], change


@torch.inference_mode()
def test_a_row_keeps_its_bits_in_any_company(device: str) -> None:
    """Alone (attending within the next stage), among a few, and in wider tiles."""
    case = dataclasses.replace(SMALL, B=19, L=1, Q=2)
    x, weights = drawn(case, device)
    configs_used = {str(configs.choose("depth_head", B=b)) for b in (1, 4, 19)}
    assert len(configs_used) == 3
    with ordered_dots():
        whole, logits = with_logits(x, weights)
        for first, count in ((0, 1), (18, 1), (3, 4)):
            some = torch.arange(first, first + count, device=device)
            part, part_logits = with_logits(x.take(some), weights)
            assert_bitwise_equal(part_logits, logits[some], f"{count} rows")
            assert torch.equal(part.codes, whole.codes[some])


@torch.inference_mode()
def test_rows_that_do_not_run_and_rows_that_are_not_finite(device: str) -> None:
    x, weights = drawn(SMALL, device)
    clean = depth_head_kernel(x, weights)
    hidden, text = x.hidden.clone(), x.text_ids.clone()
    hidden[1], text[1] = float("nan"), 1 << 40
    hidden[3, 7] = float("nan")
    rows = RowBatch.build(
        [2, 0, -1, 1, 3], [1] * 5, [4] * 5, exec_mask=[True, False, True, True, True], device=device
    )
    x = dataclasses.replace(x, hidden=hidden, text_ids=text)
    got = depth_head_kernel(x, weights, None, rows)
    assert got.finite.tolist() == [True, True, True, False, True]
    assert got.codes[1:4].tolist() == [[0] * SMALL.Q] * 3
    for row in (0, 4):
        assert torch.equal(got.codes[row], clean.codes[row])
    on_host = to_device((x, weights, rows), "cpu")
    want = depth_head_reference(on_host[0], on_host[1], None, on_host[2])
    assert torch.equal(got.codes.cpu(), want.codes)
    assert torch.equal(got.finite.cpu(), want.finite)


@torch.inference_mode()
def test_greedy_rows_and_out(device: str) -> None:
    x, weights = drawn(SMALL, device)
    cold = dataclasses.replace(
        x, sampling=dataclasses.replace(x.sampling, temperature=0 * x.sampling.temperature)
    )
    out = depth_head_kernel(x, weights)
    again = depth_head_kernel(cold, weights, out=out)
    assert again.codes is out.codes
    want = depth_head_reference(*to_device((cold, weights), "cpu"))
    assert torch.equal(out.codes.cpu(), want.codes)


def test_heads_the_kernel_cannot_take_are_refused(device: str) -> None:
    x, weights = drawn(DepthCase(1, 32, 48, 1, 2, 48, 2, 16, "heads of 24"), device)
    with pytest.raises(ValueError, match="heads of 16, 32, 64"):
        depth_head_kernel(x, weights)


def test_no_entry_of_the_table_is_dead() -> None:
    reached = {str(configs.choose("depth_head", B=c.B)) for c in (*CASES, *BENCH_CASES)}
    assert reached == {str(entry["use"]) for entry in configs.table("depth_head")}
