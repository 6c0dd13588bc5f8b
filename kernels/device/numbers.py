"""Number formats and the elementwise functions of the models."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu(x):
    """x * sigmoid(x), fp32."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def elu(x):
    """x where positive, else exp(x) - 1, fp32."""
    return tl.where(x > 0, x, tl.exp(tl.minimum(x, 0.0)) - 1.0)


@triton.jit
def gelu(x):
    """x * Phi(x), exact, fp32."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def power_of_two(exponents, DTYPE: tl.constexpr):
    """2^(e - 127) of float8_e8m0 bytes, exact as bf16, then cast to DTYPE."""
    bits = exponents.to(tl.int16) << 7
    return bits.to(tl.bfloat16, bitcast=True).to(DTYPE)
