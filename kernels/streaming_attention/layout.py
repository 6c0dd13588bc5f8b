"""Which keys meet which queries in a packed step.

Queries of a line are numbered row by row, inside a row by their place in the group of query heads
that share a kv head, and cut into tiles of 8. Keys are cut into leaves of 128, left-aligned to
absolute position. A pair is a tile and a leaf of the same line that holds a key visible to it,
in the window or as a sink: one of the first keys, that stay visible behind the window.
Tiles are worked on a part at a time, so that what a part touches stays in the cache; the leaves of
a line are gathered once, however many of its tiles see them.

Worked example: window 512, 2 query heads a kv head, one line of 5 rows from position 700. Its 10
queries fill tile 0 (rows 700 to 703) and a quarter of tile 1 (row 704; the rest of tile 1 repeats
the last query, which does no harm). Tile 0 sees positions 189 to 703 in leaves 1 to 5, tile 1 sees
193 to 704 in leaves 1 to 5, all in one group of 8. So 5 leaves are gathered for 10 pairs, in two
runs (pairs 0 to 4 are tile 0 with gathered leaves 0 to 4, pairs 5 to 9 tile 1 with the same), and
their partials are folded as they come, 5 a tile.

The same with 4 sinks, from position 9000: both tiles see leaf 0 and leaves 66 to 70, of groups 0
and 8. Groups without a leaf have no cells: the partials of tile 0 go to cells 0 and 10 to 14 of 16.

Plans are worked out in numpy: they are many small steps, and a call of torch takes longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microturn.kernels.arena import LEAF
from microturn.kernels.rows import Line, RowBatch
from microturn.kernels.tiles import TILE_ROWS

GROUP_LEAVES = 8
PART_LEAVES = 32
"""Leaves, counted once for each kv head, beyond which no further line joins a gathering: 1 MB at 64
values a head."""
PART_PAIRS = 160
"""Pairs, counted once for each kv head, that a part works on: 640 kB of logits."""

Integers = NDArray[np.int64]


class _Tile(NamedTuple):
    """Queries first_query and on of `line`, which see positions lowest to highest.

    near  the leaves of these; far  leaves of sinks that stand apart from them
    """

    line: Line
    first_query: int
    lowest: int
    highest: int
    far: range
    near: range

    @property
    def leaves(self) -> tuple[int, ...]:
        return (*self.far, *self.near)

    @property
    def in_a_row(self) -> bool:
        """Whether the fold of its groups is that of its leaves one by one: no group after the first
        has two.
        """
        groups = [leaf // GROUP_LEAVES for leaf in self.leaves]
        return all(a != b or a == groups[0] for a, b in pairwise(groups))

    @property
    def groups_between(self) -> int:
        """Groups before those of `near` in which it sees no leaf."""
        return max(self.near.start // GROUP_LEAVES - -(-len(self.far) // GROUP_LEAVES), 0)


class Run(NamedTuple):
    """`length` pairs from `pair` on meet as many gathered leaves from `leaf` on, one each."""

    pair: int
    leaf: int
    length: int


@dataclass(frozen=True, eq=False)
class Leaves:
    """L leaves gathered together, for one part or several in a row.

    slot  [L] int64, index [L] int64: which leaf of which stream
    rows  [L, Hkv, 128] int64: (key, kv head) in a leaf, head before key. A key that no query sees
          may be a former tenant's: one that is seen stands for it
    """

    slot: Integers
    index: Integers
    rows: Integers


@dataclass(frozen=True)
class AttentionPart:
    """N tiles and their P pairs, for Hkv kv heads.

    queries    [N * Hkv * 8] int64: flat (row, q head) in each place of each tile
    positions  [N, 8] int64: position of each query
    pair_tile  [P] int64
    leaf_index [P] int64: which leaf of the stream
    leaves     what is gathered, for the next part too if that has the same
    runs       which gathered leaf each pair meets
    num_groups most groups of leaves that any tile spans; 1 where all tiles are folded leaf by leaf
    group_size cells of a group
    cells      [P] int64: place of a pair's partial in [N, num_groups, group_size]
    """

    queries: Integers
    positions: Integers
    pair_tile: Integers
    leaf_index: Integers
    leaves: Leaves
    runs: tuple[Run, ...]
    num_groups: int
    group_size: int
    cells: Integers

    @property
    def num_cells(self) -> int:
        return len(self.positions) * self.num_groups * self.group_size


def _tiles(rows: RowBatch, window: int, num_sinks: int, group: int) -> Iterator[_Tile]:
    sink_leaves = -(-num_sinks // LEAF)
    for line in rows.lines:
        num_queries = (line.stop - line.start) * group
        for first in range(0, num_queries, TILE_ROWS):
            last = min(first + TILE_ROWS, num_queries) - 1
            lowest = max(0, line.position + first // group - window + 1)
            highest = line.position + last // group
            apart = lowest // LEAF > sink_leaves
            far = range(sink_leaves if apart else 0)
            near = range(lowest // LEAF if apart else 0, highest // LEAF + 1)
            yield _Tile(line, first, lowest, highest, far, near)


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    made = torch.from_numpy(values)
    return made if device.type == "cpu" else made.to(device)


def _column(values: list[int]) -> Integers:
    return np.array(values, dtype=np.int64)


def _gather(
    tiles: Iterable[_Tile], num_sinks: int, num_kv_heads: int
) -> tuple[Leaves, dict[Line, tuple[int, int]]]:
    """The leaves that tiles see, and by line the place of its leaf 0, were that gathered too:
    counted from its far leaves and from its near ones.
    """
    slots: list[int] = []
    leaves: list[int] = []
    first_keys: list[int] = []
    last_keys: list[int] = []
    places: dict[Line, tuple[int, int]] = {}
    for line, of_line in groupby(tiles, key=lambda tile: tile.line):
        mine = list(of_line)
        far, near = mine[0].far, range(mine[0].near.start, mine[-1].near.stop)
        lowest, highest = mine[0].lowest, mine[-1].highest
        places[line] = len(leaves), len(leaves) + len(far) - near.start
        for leaf in (*far, *near):
            behind = lowest >= (leaf + 1) * LEAF
            slots.append(line.slot)
            leaves.append(leaf)
            first_keys.append(max(0, lowest - leaf * LEAF))
            last_keys.append(min(LEAF, (num_sinks if behind else highest + 1) - leaf * LEAF) - 1)
    index = _column(leaves)
    first, last = _column(first_keys)[:, None, None], _column(last_keys)[:, None, None]
    every = np.arange(LEAF)
    keys = np.minimum(np.maximum(every, first), last)
    if num_sinks:
        is_sink = every < num_sinks - index[:, None, None] * LEAF
        keys = np.minimum(np.where(is_sink, every, keys), last)
    heads = np.arange(num_kv_heads)[:, None]
    return Leaves(_column(slots), index, keys * num_kv_heads + heads), places


def _runs(tiles: list[_Tile], places: dict[Line, tuple[int, int]]) -> tuple[Run, ...]:
    runs: list[Run] = []
    last = Run(0, -1, 0)
    for tile in tiles:
        for place, seen in zip(places[tile.line], (tile.far, tile.near), strict=True):
            leaf, count = place + seen.start, len(seen)
            if not count:
                continue
            if leaf == last.leaf + last.length:
                last = last._replace(length=last.length + count)
                runs[-1] = last
            else:
                last = Run(last.pair + last.length, leaf, count)
                runs.append(last)
    return tuple(runs)


def _build(
    tiles: list[_Tile],
    leaves: Leaves,
    places: dict[Line, tuple[int, int]],
    num_kv_heads: int,
    group: int,
) -> AttentionPart:
    num_groups, group_size, cells = _cells(tiles)
    begin = _column([tile.first_query for tile in tiles])[:, None]
    end = _column([(t.line.stop - t.line.start) * group - 1 for t in tiles])[:, None]
    row = _column([tile.line.start for tile in tiles])[:, None]
    position = _column([tile.line.position for tile in tiles])[:, None]
    query = np.minimum(begin + np.arange(TILE_ROWS), end)
    local = query // group
    heads = np.arange(num_kv_heads)[:, None]
    queries = ((row + local)[:, None] * num_kv_heads + heads) * group + (query % group)[:, None]
    return AttentionPart(
        queries=queries.reshape(-1),
        positions=position + local,
        pair_tile=_column([i for i, tile in enumerate(tiles) for _ in tile.leaves]),
        leaf_index=_column([leaf for tile in tiles for leaf in tile.leaves]),
        leaves=leaves,
        runs=_runs(tiles, places),
        num_groups=num_groups,
        group_size=group_size,
        cells=cells,
    )


def _cells(tiles: list[_Tile]) -> tuple[int, int, Integers]:
    """num_groups, group_size and cells of an `AttentionPart`."""
    counts = [len(tile.leaves) for tile in tiles]
    if all(tile.in_a_row for tile in tiles):
        size = max(counts)
        return 1, size, _column([i * size + j for i, n in enumerate(counts) for j in range(n)])
    skips = [tile.groups_between for tile in tiles]
    last_groups = [(tile.near.stop - 1) // GROUP_LEAVES for tile in tiles]
    num_groups = 1 + max(last - skip for last, skip in zip(last_groups, skips, strict=True))
    cells = [
        group * GROUP_LEAVES + leaf
        for i, (skip, tile) in enumerate(zip(skips, tiles, strict=True))
        for group, seen in ((i * num_groups, tile.far), (i * num_groups - skip, tile.near))
        for leaf in seen
    ]
    return num_groups, GROUP_LEAVES, _column(cells)


def build_parts(
    rows: RowBatch, window: int, num_sinks: int, num_kv_heads: int, group: int
) -> tuple[AttentionPart, ...]:
    """The parts of the lines that run, `group` query heads to a kv head."""
    batches: list[list[list[_Tile]]] = []
    line: Line | None = None
    leaves = pairs = 0
    for tile in _tiles(rows, window, num_sinks, group):
        count = len(tile.leaves)
        pairs += count
        if tile.line is not line:
            line = tile.line
            leaves += count
            if leaves * num_kv_heads > PART_LEAVES or not batches:
                batches.append([[]])
                leaves = pairs = count
        if pairs * num_kv_heads > PART_PAIRS and batches[-1][-1]:
            batches[-1].append([])
            pairs = count
        batches[-1][-1].append(tile)
    built: list[AttentionPart] = []
    for parts in batches:
        gathered, places = _gather(chain.from_iterable(parts), num_sinks, num_kv_heads)
        built += [_build(p, gathered, places, num_kv_heads, group) for p in parts]
    return tuple(built)
