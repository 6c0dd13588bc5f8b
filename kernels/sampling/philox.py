"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011), in torch integers.

A 32x32 product is an int64 whose halves are read as int32 views, so a round is four torch calls
(little-endian machines, the only ones torch supports).
"""

from __future__ import annotations

import threading
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = 0xFFFFFFFF
KEPT_NUMBERS = 1 << 14
"""Scratch up to this many counters is kept for the next call: making its views costs a third of a
small draw.
"""

Counter = tuple[Tensor, Tensor, Tensor, Tensor]


class _Product(NamedTuple):
    """[2, ...] int64, the products of counter words 0 and 2, and each row's halves."""

    whole: Tensor
    low: tuple[Tensor, ...]
    high: tuple[Tensor, ...]


class _Scratch(NamedTuple):
    """Words 0 and 2 zero-extended to int64 (`state`, its low halves `words` and `word`); words 1
    and 3 are the low halves of the last products, rows 1 and 0.
    """

    state: Tensor
    words: Tensor
    word: tuple[Tensor, ...]
    products: tuple[_Product, _Product]


@torch.inference_mode(False)
def _make_scratch(shape: torch.Size, device: torch.device) -> _Scratch:
    """Outside inference mode, whose tensors and views could not be written to after it."""
    buffer = torch.zeros(3, 2, *shape, dtype=torch.int64, device=device)
    low, high = buffer.view(torch.int32).view(*buffer.shape, 2).unbind(-1)
    first, second = (_Product(buffer[i], low[i].unbind(0), high[i].unbind(0)) for i in (1, 2))
    return _Scratch(buffer[0], low[0], low[0].unbind(0), (first, second))


@lru_cache(maxsize=32)
def _kept_scratch(shape: torch.Size, device: torch.device, thread: int) -> _Scratch:
    return _make_scratch(shape, device)


@cache
@torch.inference_mode(False)
def _constants(dims: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The multipliers [2, 1, ...] and what each round adds to the key [ROUNDS, 2, 1, ...]."""
    factors = torch.tensor(MULTIPLIERS, device=device)
    added = [[r * step for step in KEY_STEPS] for r in range(ROUNDS)]
    ones = (1,) * dims
    return factors.view(2, *ones), torch.tensor(added, device=device).view(ROUNDS, 2, *ones)


def _rounds(counter: Counter, key: Tensor) -> tuple[Tensor, Tensor]:
    """Scratch views: words (0, 2) [2, ...] and, in the low halves, words (3, 1) [2, ...]."""
    spread = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    shape, device = spread[0].shape, key.device
    if shape.numel() <= KEPT_NUMBERS:
        scratch = _kept_scratch(shape, device, threading.get_ident())
    else:
        scratch = _make_scratch(shape, device)
    state, words, word, (last, product) = scratch
    word[0].copy_(counter[0])
    last.low[1].copy_(counter[1])
    word[1].copy_(counter[2])
    last.low[0].copy_(counter[3])

    factors, added = _constants(len(shape), device)
    missing = len(shape) + 1 - key.dim()
    aligned = key.reshape(2, *(1,) * missing, *key.shape[1:]) if missing else key
    for round_key in (aligned + added).to(torch.int32).unbind(0):
        torch.mul(state, factors, out=product.whole)
        torch.bitwise_xor(product.high[1], last.low[1], out=word[0])
        torch.bitwise_xor(product.high[0], last.low[0], out=word[1])
        words.bitwise_xor_(round_key)
        last, product = product, last
    return state, last.whole


def philox4x32(counter: Counter, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of c0', c1', c2', c3' = high(B c2) ^ c1 ^ k0, low(B c2), high(A c0) ^ c3 ^ k1,
    low(A c0) with A, B = MULTIPLIERS; the key grows by KEY_STEPS after each round.

    counter  four int64 tensors, broadcast together; only the low 32 bits of each value count
    key      [2, ...] int64 or int32, low 32 bits; broadcast against the counters from the right
    Returns four int64 tensors of the counters' broadcast shape, words 0 to 2**32 - 1.
    """
    even, odd = _rounds(counter, key)
    odd = odd & LOW
    return even[0].clone(), odd[1], even[1].clone(), odd[0]


def philox_word(counter: Counter, key: Tensor) -> Tensor:
    """Word 0 of `philox4x32`."""
    even, _ = _rounds(counter, key)
    return even[0].clone()
