"""Weights in eight bits: how they are stored, and what every weight in them is worth.

A row of a weight is cut into blocks of 128 along its inputs; a block is stored as e4m3 numbers and
one power of two. A block belongs to one row, so any slice of rows (a rank's, an expert's, a chunk
of a stream) gives the same bits as the whole, whichever rows are fused. A power of two as scale
makes every value, scaled back, exact in bf16: a bf16 matmul over it and an fp32 one multiply the
same numbers. Scales add 0.8 % to the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Inputs that share a scale."""

LEAST_EXPONENT = -117
"""Of a scale: the least e4m3 number, 2^-9, is then still a normal number of fp32 and bf16."""


@dataclass(frozen=True)
class Quantized:
    """values [..., N, K] float8_e4m3fn; scales [..., N, ceil(K / 128)] float8_e8m0fnu."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __getitem__(self, index: int | slice) -> Quantized:
        """The same leading index of both."""
        return Quantized(self.values[index], self.scales[index])


Weight = Tensor | Quantized
"""A matrix an op streams: plain, or in eight bits."""


def plain(weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers a weight stands for, as `dtype`; None: a Tensor's own, fp32 of a Quantized."""
    values = weight if isinstance(weight, Tensor) else dequantize(weight)
    return values if dtype is None or values.dtype == dtype else values.to(dtype)


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


def _blocks(weight: Tensor) -> Tensor:
    """[..., K] -> [..., ceil(K / 128), 128], zeros behind the last input."""
    padded = F.pad(weight, (0, -weight.shape[-1] % BLOCK))
    return padded.view(*padded.shape[:-1], -1, BLOCK)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent for exponents in [-126, 127], from the bits of an fp32 number."""
    return ((exponent.int() + 127) << 23).view(torch.float32)
