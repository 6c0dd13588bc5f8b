"""The k largest of a row without sorting, and one of them drawn.

Logits become 32-bit keys that order as they do; the k-th largest key is found bit by bit, from the
highest, by counting. Of keys equal to it, the lowest ids are kept, found in the same way.
Counts do not depend on how a block lies in registers, so nor does what is kept.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.philox import gumbel


@triton.jit
def ordered_keys(logits):
    """uint32 that order like fp32 logits; NaN comes last, zeros of both signs are one."""
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.uint32, bitcast=True)
    keys = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(logits != logits, 0xFFFFFFFF, keys).to(tl.uint32)


@triton.jit
def key_logits(keys):
    """The logits of keys, NaN as NaN."""
    bits = tl.where((keys >> 31) != 0, keys & 0x7FFFFFFF, keys ^ 0xFFFFFFFF).to(tl.uint32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _count_tail(keys_ptr, ids_ptr, size, key, id_bound, EQUAL: tl.constexpr, BLOCK: tl.constexpr):
    """Of entries BLOCK to size - 1: keys >= key, or (EQUAL) those equal to it with a lower id."""
    total = 0
    lane = tl.arange(0, BLOCK)
    for start in tl.range(BLOCK, size, BLOCK):
        there = start + lane < size
        keys = tl.load(keys_ptr + start + lane, mask=there, other=0, cache_modifier=".cg")
        if EQUAL:
            ids = tl.load(ids_ptr + start + lane, mask=there, other=0, cache_modifier=".cg")
            hit = (keys.to(tl.uint32, bitcast=True) == key) & (ids < id_bound)
        else:
            hit = keys.to(tl.uint32, bitcast=True) >= key
        total += tl.sum((hit & there).to(tl.int32))
    return total


@triton.jit
def kth_key(keys, there, k, BITS: tl.constexpr):
    """The largest key of which only the top BITS are set and that at least k of `keys` reach; 0
    where fewer than k are there. keys uint32 [N], there bool [N].
    """
    found = tl.cast(0, tl.uint32)
    high = tl.cast(0x80000000, tl.uint32)
    for _ in tl.range(BITS):
        trial = found | high
        high = (high >> 1).to(tl.uint32)
        reach = tl.sum(((keys >= trial) & there).to(tl.int32))
        found = tl.where(reach >= k, trial, found).to(tl.uint32)
    return found


@triton.jit
def draw(
    keys,
    ids,
    there,
    k,
    temperature,
    stream,
    seed,
    step,
    keys_ptr,
    ids_ptr,
    size,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(id, whether the row has a finite maximum): of the k largest, that with the largest (logit -
    max) / temperature + noise, ties to the lower id; 0 where there is no finite maximum.

    keys, ids, there [BLOCK]: the first entries of a row of `size`, each with its key and id, in any
    order; (TAIL) the rest are read from keys_ptr and ids_ptr, int32
    temperature 0 or less: the largest, whatever k is
    """
    hot = temperature > 0.0
    k = tl.where(hot, tl.maximum(k, 1), 1)
    kth = tl.cast(0, tl.uint32)
    best = tl.max(tl.where(there, keys, 0).to(tl.uint32))
    lane = tl.arange(0, BLOCK)
    if TAIL:
        for start in tl.range(BLOCK, size, BLOCK):
            inside = start + lane < size
            more = tl.load(keys_ptr + start + lane, mask=inside, other=0, cache_modifier=".cg")
            best = tl.maximum(best, tl.max(more.to(tl.uint32, bitcast=True)))
    reach_kth = tl.cast(0, tl.int32)
    if k < size:
        high = tl.cast(0x80000000, tl.uint32)
        for _ in tl.range(32):
            trial = kth | high
            reach = tl.sum(((keys >= trial) & there).to(tl.int32))
            if TAIL:
                reach += _count_tail(keys_ptr, ids_ptr, size, trial, 0, False, BLOCK)
            high = (high >> 1).to(tl.uint32)
            kth = tl.where(reach >= k, trial, kth).to(tl.uint32)
            reach_kth = tl.where(reach >= k, reach, reach_kth)
    above = reach_kth
    last = tl.cast(0x7FFFFFFF, tl.int32)
    if reach_kth > k:
        equal = (keys == kth) & there
        count = tl.sum(equal.to(tl.int32))
        if TAIL:
            count += _count_tail(keys_ptr, ids_ptr, size, kth, 0x7FFFFFFF, True, BLOCK)
        above = reach_kth - count
        last = tl.cast(0, tl.int32)
        half = tl.cast(1 << 30, tl.int32)
        for _ in tl.range(31):
            trial = last | half
            lower = tl.sum((equal & (ids < trial)).to(tl.int32))
            if TAIL:
                lower += _count_tail(keys_ptr, ids_ptr, size, kth, trial, True, BLOCK)
            half = half >> 1
            last = tl.where(above + lower < k, trial, last)
    top = key_logits(best)
    divisor = tl.where(hot, temperature, 1.0)
    kept = there & ((keys > kth) | ((keys == kth) & (ids <= last)))
    noise = gumbel(ids, stream, seed, step)
    scores = tl.div_rn(key_logits(keys) - top, tl.zeros_like(noise) + divisor) + noise
    scores = tl.where(kept, scores, float("-inf"))
    score = tl.max(scores)
    winner = tl.min(tl.where(kept & (scores == score), ids, 0x7FFFFFFF))
    if TAIL:
        for start in tl.range(BLOCK, size, BLOCK):
            inside = start + lane < size
            more = tl.load(keys_ptr + start + lane, mask=inside, other=0, cache_modifier=".cg")
            more = more.to(tl.uint32, bitcast=True)
            names = tl.load(ids_ptr + start + lane, mask=inside, other=0, cache_modifier=".cg")
            kept = inside & ((more > kth) | ((more == kth) & (names <= last)))
            noise = gumbel(names, stream, seed, step)
            scores = tl.div_rn(key_logits(more) - top, tl.zeros_like(noise) + divisor) + noise
            scores = tl.where(kept, scores, float("-inf"))
            score_here = tl.max(scores)
            here = tl.min(tl.where(kept & (scores == score_here), names, 0x7FFFFFFF))
            better = (score_here > score) | ((score_here == score) & (here < winner))
            winner = tl.where(better, here, winner)
            score = tl.maximum(score, score_here)
    finite = (best >= 0x00800000) & (best < 0xFF800000)
    return tl.where(finite, winner, 0), finite
