"""Every op's kernel against its reference, over every case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from microturn.kernels.registry import OP_NAMES, OPS, Case
from microturn.kernels.testing import MAX_ERROR, compare

PLAIN = ("fp32", "fp16", "bf16") if torch.cuda.is_available() else ("fp32", "fp16")


KERNELS = Path(__file__).parents[2] / "kernels"
WRITTEN = [name for name in OP_NAMES if (KERNELS / name / "launch.py").exists()]


CASES = [
    pytest.param(name, case, dtype, id=f"{name}-{case.id}-{dtype}")
    for name in WRITTEN
    for case in OPS[name].cases
    for dtype in (*PLAIN, *({"fp8"} & set(OPS[name].dtypes)))
]


@pytest.mark.parametrize(("name", "case", "dtype"), CASES)
def test_the_kernel_matches_its_reference(name: str, case: Case, dtype: str, device: str) -> None:
    compared = compare(OPS[name], case, dtype, device=device)
    assert compared.result <= MAX_ERROR[dtype]
    assert compared.state <= MAX_ERROR[dtype]
