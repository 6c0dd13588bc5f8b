"""Sorting pairs (row, choice) by expert, in one program: counters only, and always the same order.

ids_ptr   [P] int32        expert of each pair, E where its row does not run
size_ptr  [2] int32        how many tiles there are, of how many experts
tiles_ptr [tiles, 4] int32 (expert, first place, rows, 0), experts rising, at most TILE_ROWS rows
pairs_ptr [P] int32        place -> pair; inside an expert the order is the pairs'
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_run(rows, offsets_ptr, slots_ptr, exec_ptr, B, LINES: tl.constexpr):
    """Which rows belong to a line that runs; LINES a power of two >= B. `offsets_ptr [B + 1]`,
    `slots_ptr [B]` int32, `exec_ptr [B]` uint8.
    """
    b = tl.arange(0, LINES)
    ends = tl.load(offsets_ptr + 1 + b, mask=b < B, other=2147483647)
    line = tl.sum((ends[None, :] <= rows[:, None]).to(tl.int32), axis=1)
    inside = line < B
    slot = tl.load(slots_ptr + line, mask=inside, other=-1)
    runs = tl.load(exec_ptr + line, mask=inside, other=0)
    return (slot >= 0) & (runs != 0)


@triton.jit
def list_tiles(
    counts, size_ptr, tiles_ptr, E: tl.constexpr, BINS: tl.constexpr, TILE_ROWS: tl.constexpr
):
    """Writes size and tiles for `counts [BINS]` pairs an expert; gives the first place of each."""
    e = tl.arange(0, BINS)
    counts = tl.where(e < E, counts, 0)
    first = tl.cumsum(counts, 0) - counts
    each = (counts + TILE_ROWS - 1) // TILE_ROWS
    tile = tl.cumsum(each, 0) - each
    tl.store(size_ptr, tl.sum(each, 0))
    tl.store(size_ptr + 1, tl.sum((counts > 0).to(tl.int32), 0))
    for r in range(tl.max(each, 0)):
        entry = tiles_ptr + (tile + r) * 4
        tl.store(entry, e, mask=r < each)
        tl.store(entry + 1, first + r * TILE_ROWS, mask=r < each)
        tl.store(entry + 2, tl.minimum(counts - r * TILE_ROWS, TILE_ROWS), mask=r < each)
    return first


@triton.jit
def place_pairs(
    ids_ptr,
    pairs_ptr,
    following,
    begin,
    end,
    P,
    E: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes the places of pairs begin to end - 1; `following [BINS]`: each expert's next place."""
    i = tl.arange(0, CHUNK)
    for start in range(begin, end, CHUNK):
        p = start + i
        ids = tl.load(ids_ptr + p, mask=p < P, other=E, cache_modifier=".cg")
        earlier = (ids[:, None] == ids[None, :]) & (i[None, :] < i[:, None])
        rank = tl.sum(earlier.to(tl.int32), axis=1)
        place = tl.gather(following, ids, 0) + rank
        tl.store(pairs_ptr + place, p, mask=ids < E)
        following += tl.histogram(ids, BINS)


@triton.jit
def list_experts(
    ids_ptr,
    size_ptr,
    tiles_ptr,
    pairs_ptr,
    P,
    E: tl.constexpr,
    BINS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The whole list by one program; BINS a power of two above E, CHUNK pairs at a time."""
    i = tl.arange(0, CHUNK)
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(0, P, CHUNK):
        p = start + i
        ids = tl.load(ids_ptr + p, mask=p < P, other=E, cache_modifier=".cg")
        counts += tl.histogram(ids, BINS)
    first = list_tiles(counts, size_ptr, tiles_ptr, E, BINS, TILE_ROWS)
    place_pairs(ids_ptr, pairs_ptr, first, 0, P, P, E, BINS, CHUNK)
