"""Every op's kernel against its reference, over every case."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from microturn.kernels.registry import OP_NAMES, OPS, Case, OpInputs
from microturn.kernels.testing import (
    MAX_ERROR,
    assert_bitwise_equal,
    compare,
    shuffled_programs,
    to_device,
)
from microturn.kernels.tree import tensors

PLAIN = ("fp32", "fp16", "bf16") if torch.cuda.is_available() else ("fp32", "fp16")


def dtypes_of(name: str) -> tuple[str, ...]:
    """The plain ones, and eight bits where an op has them; fp32 alone where it has no other."""
    have = OPS[name].dtypes
    return ("fp32",) if have == ("fp32",) else (*PLAIN, *({"fp8"} & set(have)))


CASES = [
    pytest.param(name, case, dtype, id=f"{name}-{case.id}-{dtype}")
    for name in OP_NAMES
    for case in OPS[name].cases
    for dtype in dtypes_of(name)
]


@pytest.mark.parametrize(("name", "case", "dtype"), CASES)
def test_the_kernel_matches_its_reference(name: str, case: Case, dtype: str, device: str) -> None:
    compared = compare(OPS[name], case, dtype, device=device)
    assert compared.result <= MAX_ERROR[dtype]
    assert compared.state <= MAX_ERROR[dtype]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU orders programs as it likes")
@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case.id}")
        for name in OP_NAMES
        for case in OPS[name].cases
    ],
)
def test_the_order_of_programs_does_not_matter(name: str, case: Case) -> None:
    """Results and state, to the bit: no program of a launch may race with another."""
    op = OPS[name]
    inputs = op.make_inputs(case)
    results = []
    for seed in (None, 0):
        copy = OpInputs(*to_device(tuple(inputs), "cpu"))
        with nullcontext() if seed is None else shuffled_programs(seed), torch.inference_mode():
            results.append((op.kernel(*copy), copy.state))
    for shuffled in results[1:]:
        for a, b in zip(tensors(shuffled), tensors(results[0]), strict=True):
            assert_bitwise_equal(a.nan_to_num(7.0), b.nan_to_num(7.0), "in another order")
