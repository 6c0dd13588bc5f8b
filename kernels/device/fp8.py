"""8-bit weights, keys and values in the registers of a matrix unit that multiplies bf16."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _from_e4m3(words, HIGH: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """[N, M] int32 -> [N, 2 * M] of DTYPE, exact: the lower two e4m3 of each, with HIGH the upper.

    The conversion instructions are slower than memory. With ASM: both bytes with their signs
    extended to 16 bits, 4 to the left, all but the sign and 7 bits cleared: that is bf16, subnormal
    numbers too, times 2^-120. NaN comes out as 480.
    """
    if ASM and DTYPE == tl.bfloat16:  # noqa: SIM300
        both = tl.inline_asm_elementwise(
            """{
            .reg .b32 a, p;
            mov.b32 p, 0x7b807b80;
            prmt.b32 a, $1, 0, """
            + ("0xb3a2" if HIGH else "0x9180")
            + """;
            shl.b32 a, a, 4;
            and.b32 a, a, 0x87f087f0;
            mul.rn.bf16x2 $0, a, p;
            }""",
            "=r,r",
            [words],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        first = both.to(tl.int16).to(tl.bfloat16, bitcast=True)
        second = (both >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        pair = words >> 16 if HIGH else words
        first = (pair & 255).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(DTYPE)
        second = ((pair >> 8) & 255).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(DTYPE)
    return tl.join(first, second).reshape(words.shape[0], 2 * words.shape[1])


@triton.jit
def from_e4m3_pairs(pairs, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """[N, K / 2] int16, two e4m3 each -> [N, K] of DTYPE, exact."""
    return _from_e4m3(pairs.to(tl.int32), False, DTYPE, ASM)


@triton.jit
def from_e4m3_quads(quads, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """[N, K / 4] int32, four e4m3 each -> two [N, K / 2]: the first two of each, the last two."""
    return _from_e4m3(quads, False, DTYPE, ASM), _from_e4m3(quads, True, DTYPE, ASM)
