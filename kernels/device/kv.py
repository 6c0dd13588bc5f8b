"""Where the keys and values of a stream live: rings and pages (see `microturn.kernels.arena`).

data_ptr  ring [S, capacity, Hkv, D], pages [num_pages, page_size, Hkv, D]: rows of Hkv * D values
table_ptr [S, capacity // page_size] int32, pages only
capacity  positions a slot keeps; the first `pinned` of them are never recycled
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from microturn.kernels.arena import Pages, Ring


class KVArguments(NamedTuple):
    """What a kernel takes of an arena. page_size is a constexpr, 0 for a ring; a ring's table is
    its data, which nothing reads.
    """

    data: Tensor
    table: Tensor
    capacity: int
    pinned: int
    page_size: int


def kv_arguments(arena: Ring | Pages) -> KVArguments:
    """Raises ValueError where the rows of the arena do not follow one another in memory."""
    if not arena.data.is_contiguous():
        raise ValueError(
            f"keys and values must be contiguous, got strides {arena.data.stride()} for "
            f"{list(arena.data.shape)}; give each arena a tensor of its own"
        )
    size = arena.capacity, arena.pinned
    if isinstance(arena, Pages):
        return KVArguments(arena.data, arena.page_table, *size, arena.page_size)
    return KVArguments(arena.data, arena.data, *size, 0)


@triton.jit
def kv_row(slot, position, table_ptr, capacity, pinned, PAGE_SIZE: tl.constexpr):
    """int64 index of the row of data that keeps `position` of `slot`; multiply by Hkv * D.

    slot, position: integers or blocks of them. A slot of -1 gives a row that exists, not to be
    written: mask the store.
    """
    real = tl.maximum(slot, 0)
    kept = tl.where(position < pinned, position, pinned + (position - pinned) % (capacity - pinned))
    if PAGE_SIZE == 0:
        return tl.cast(real, tl.int64) * capacity + kept
    else:
        page = tl.load(table_ptr + real * (capacity // PAGE_SIZE) + kept // PAGE_SIZE)
        return tl.cast(page, tl.int64) * PAGE_SIZE + kept % PAGE_SIZE


@triton.jit
def as_kept(x, DTYPE: tl.constexpr):
    """x, fp32 or narrower, as an arena keeps it; e4m3 to the nearest, ties to even, at most 448.

    Written out because the interpreter's own cast to 8 bits loses carries and NaN.
    """
    if DTYPE.is_fp8e4nv():
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF
        normal = bits.to(tl.float32, bitcast=True)
        small = (x + 24576.0) - 24576.0
        rounded = tl.where(tl.abs(x) < 0.015625, small, normal)
        rounded = tl.where(rounded > 448.0, 448.0, tl.where(rounded < -448.0, -448.0, rounded))
        byte = tl.where(x == x, rounded, 0.0).to(DTYPE).to(tl.uint8, bitcast=True)
        return tl.where(x == x, byte, 127).to(tl.uint8).to(DTYPE, bitcast=True)
    else:
        return x.to(DTYPE)
