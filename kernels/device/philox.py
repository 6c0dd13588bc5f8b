"""Philox4x32-10 and the noise drawn from it, as `microturn.kernels.sampling.philox` in torch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox_word(c0, c1, c2, c3, k0, k1):
    """Word 0 of Philox4x32-10 (Salmon et al., SC 2011); all uint32, blocks of one shape."""
    for _ in tl.static_range(10):
        a_high, a_low = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        b_high, b_low = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = b_high ^ c1 ^ k0, b_low, a_high ^ c3 ^ k1, a_low
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0


@triton.jit
def gumbel(ids, stream, seed, step):
    """-log(-log(u)) of each id, fp32: u from key `seed` and counter (step low, stream, id, step
    high).

    ids a block of integers; stream, seed, step scalars, the last two int64
    """
    zero = ids.to(tl.uint32) * 0
    low, high = step & 0xFFFFFFFF, (step >> 32) & 0xFFFFFFFF
    key_low, key_high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    word = philox_word(
        zero + low.to(tl.uint32),
        zero + stream.to(tl.uint32),
        ids.to(tl.uint32),
        zero + high.to(tl.uint32),
        zero + key_low.to(tl.uint32),
        zero + key_high.to(tl.uint32),
    )
    # Both steps exact: 23 bits scaled by a power of two, then half of the last place added.
    u = (word >> 9).to(tl.float32) * 1.1920928955078125e-07 + 5.960464477539063e-08
    return -tl.log(-tl.log(u))
