"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011).

In numpy: a draw is small, and a call of numpy costs a tenth of one of torch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)

Words = NDArray[np.uint64]
Counter = tuple[Tensor, Tensor, Tensor, Tensor]

_FACTORS = np.array(MULTIPLIERS, np.uint64)
_ADDED = np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array(KEY_STEPS, np.uint64)


def philox_rounds(counter: tuple[Words, Words, Words, Words], key: Words) -> tuple[Words, Words]:
    """Words (0, 2) and (1, 3), each [2, ...], below 2**32. Arguments as for `philox4x32`."""
    shape = np.broadcast(*counter).shape
    even, odd = np.empty((2, 2, *shape), np.uint64)
    even[0], odd[0], even[1], odd[1] = counter
    even &= LOW
    odd &= LOW
    ones = (1,) * len(shape)
    key = key.reshape(2, *ones[key.ndim - 1 :], *key.shape[1:])
    keys = (key + _ADDED.reshape(ROUNDS, 2, *ones)) & LOW
    factors = _FACTORS.reshape(2, *ones)
    for round_key in keys:
        product = (even * factors)[::-1]
        even = product >> HALF
        even ^= odd
        even ^= round_key
        odd = product & LOW
    return even, odd


def philox4x32(counter: Counter, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of c0', c1', c2', c3' = high(B c2) ^ c1 ^ k0, low(B c2), high(A c0) ^ c3 ^ k1,
    low(A c0) with A, B = MULTIPLIERS; the key grows by KEY_STEPS after each round.

    counter  four int64 tensors, broadcast together; only the low 32 bits of each value count
    key      [2, ...] int64, low 32 bits; broadcast against the counters from the right
    Returns four int64 tensors of the counters' broadcast shape, words 0 to 2**32 - 1.
    """
    c0, c1, c2, c3 = (words_of(c) for c in counter)
    even, odd = philox_rounds((c0, c1, c2, c3), words_of(key))
    first, second, third, fourth = (
        torch.from_numpy(np.asarray(word, np.int64)) for word in (even[0], odd[0], even[1], odd[1])
    )
    return first, second, third, fourth


def words_of(numbers: Tensor) -> Words:
    """int64 on the host as the unsigned numbers of the same bits; shares memory."""
    return numbers.numpy().view(np.uint64)
