"""Weights in eight bits, and the rounding that each storage type of weights brings.

A row of a weight is cut into blocks of 128 along its inputs; a block is stored as e4m3 numbers and
one power of two. A block belongs to one row, so any slice of rows (a rank's, an expert's, a chunk
of a stream) gives the same bits as the whole, whichever rows are fused. A power of two as scale
makes every value, scaled back, exact in bf16: a bf16 matmul over it and an fp32 one multiply the
same numbers. Scales add 0.8 % to the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Inputs that share a scale."""

LEAST_EXPONENT = -117
"""Of a scale: the least e4m3 number, 2^-9, is then still a normal number of fp32 and bf16."""

Kind = Literal["matrix", "plain", "scalar"]
"""matrix: of a matmul; plain: tables, norms, convolutions, routers; scalar: kept in fp32."""

WeightDtype = Literal["fp32", "bf16", "fp8"]
WEIGHT_DTYPES: tuple[str, ...] = get_args(WeightDtype)


@dataclass(frozen=True)
class Quantized:
    """values [..., N, K] float8_e4m3fn; scales [..., N, ceil(K / 128)] float8_e8m0fnu."""

    values: Tensor
    scales: Tensor


def quantize(weight: Tensor) -> Quantized:
    """values = round(weight / scale) to e4m3; scale = the least power of two that brings the
    block's largest magnitude to 448 or less (2^-117 at least; 1 for a block of zeros).

    weight [..., N, K] floating. Raises ValueError when it holds infinities or NaN.
    """
    blocks = _blocks(weight.float())
    largest = blocks.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("weights with infinities or NaN have no 8-bit form")
    # largest = m * 2^x with m in [0.5, 1), and 448 = 0.875 * 2^9.
    m, x = torch.frexp(largest)
    exponent = torch.where(m <= 0.875, x - 9, x - 8).clamp_min(LEAST_EXPONENT)
    exponent = torch.where(largest == 0, 0, exponent)
    values = (blocks * _power_of_two(-exponent)[..., None]).to(torch.float8_e4m3fn)
    scales = (exponent + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
    return Quantized(values.flatten(-2)[..., : weight.shape[-1]].contiguous(), scales)


def dequantize(quantized: Quantized) -> Tensor:
    """values * scale, exact in fp32 and in bf16: [..., N, K] fp32."""
    size = quantized.values.shape[-1]
    exponent = quantized.scales.view(torch.uint8).int() - 127
    blocks = _blocks(quantized.values.float()) * _power_of_two(exponent)[..., None]
    return blocks.flatten(-2)[..., :size]


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


def _blocks(weight: Tensor) -> Tensor:
    """[..., K] -> [..., ceil(K / 128), 128], zeros behind the last input."""
    padded = F.pad(weight, (0, -weight.shape[-1] % BLOCK))
    return padded.view(*padded.shape[:-1], -1, BLOCK)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent for exponents in [-126, 127], from the bits of an fp32 number."""
    return ((exponent.int() + 127) << 23).view(torch.float32)
