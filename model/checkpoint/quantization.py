"""What each storage type of weights makes of a checkpoint's numbers (the form itself:
`kernels.quantized`).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from microturn.kernels.quantized import dequantize, quantize

Kind = Literal["matrix", "plain", "scalar"]
"""matrix: of a matmul; plain: tables, norms, convolutions, routers; scalar: kept in fp32."""

WeightDtype = Literal["fp32", "bf16", "fp8"]
WEIGHT_DTYPES: tuple[str, ...] = get_args(WeightDtype)


def round_weight(weight: Tensor, dtype: str, kind: Kind) -> None:
    """Gives `weight`, in place, the values it would have when stored as `dtype`.

    fp32 keeps them; bf16 rounds all but scalars; fp8 quantises matrices and rounds the rest to
    bf16. Raises ValueError on values that have no such form.
    """
    if dtype == "fp32" or kind == "scalar":
        return
    if dtype == "fp8" and kind == "matrix":
        weight.copy_(dequantize(quantize(weight)))
    elif weight.dtype != torch.bfloat16:
        weight.copy_(weight.to(torch.bfloat16))


def check_weight_dtype(dtype: str) -> None:
    """Raises ValueError unless it is one of WEIGHT_DTYPES."""
    if dtype not in WEIGHT_DTYPES:
        raise ValueError(f"weights are fp32, bf16 or fp8, got {dtype!r}")
