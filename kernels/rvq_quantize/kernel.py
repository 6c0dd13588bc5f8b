"""The Triton kernels of rvq_quantize: the stages of a residual search with a barrier between them.

x_ptr       [T, DIM], stride_x between rows
proj_ptr    semantic_ptr and acoustic_ptr [D, DIM], the groups' projections
tables_ptr  [BOOKS, SIZE, D]
half_ptr    [BOOKS, SIZE] half the squared length of each row
codes_ptr   [T, BOOKS] int64, stride_codes between rows
left_ptr    [2, 2, T, D] fp32: what is left to quantise, of each group, twice (a book reads one copy
            and writes the other)
best_ptr    [2, TILES_E, T] fp32, the least distance in each tile of a book, twice
index_ptr   [2, TILES_E, T] int32, and the lowest row of the book that has it
counter_ptr two int32 of the grid barrier, zero before and after
offsets_ptr, slots_ptr, exec_ptr, positions_ptr, B, halvings, UP: see kernels/device/lines.py
            (HAS_ROWS)

Sums are plain fp32, block by block in one order, so that codes are those of any exact search.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.barrier import grid_barrier
from microturn.kernels.device.lines import find_lines


@triton.jit
def project_latents(
    program,
    programs,
    x_ptr,
    semantic_ptr,
    acoustic_ptr,
    left_ptr,
    T,
    stride_x,
    DIM: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """left[0, g] = x @ projection_g, a tile [BLOCK_T, BLOCK_N] at a time."""
    tiles_n: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    tiles_t = tl.cdiv(T, BLOCK_T)
    for tile in tl.range(program, 2 * tiles_n * tiles_t, programs):
        group = tile // (tiles_n * tiles_t)
        n = tile // tiles_t % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        t = tile % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)
        proj_ptr = semantic_ptr
        if group == 1:
            proj_ptr = acoustic_ptr
        acc = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        for at in tl.range(0, DIM, BLOCK_K):
            k = at + tl.arange(0, BLOCK_K)
            k_in = k < DIM
            x_at = tl.minimum(t, T - 1).to(tl.int64)[:, None] * stride_x + k[None, :]
            x = tl.load(x_ptr + x_at, mask=k_in[None, :], other=0.0)
            w_at = tl.minimum(n, D - 1)[None, :] * DIM + k[:, None]
            w = tl.load(proj_ptr + w_at, mask=k_in[:, None], other=0.0)
            acc = tl.dot(x.to(tl.float32), w.to(tl.float32), acc, input_precision="ieee")
        to = left_ptr + (group * 2 * T + t)[:, None] * D + n[None, :]
        tl.store(to, acc, mask=(t < T)[:, None] & (n < D)[None, :])


@triton.jit
def search_book(
    program,
    programs,
    book,
    tables_ptr,
    half_ptr,
    codes_ptr,
    left_ptr,
    best_ptr,
    index_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    B,
    halvings,
    T,
    stride_codes,
    D: tl.constexpr,
    BOOKS: tl.constexpr,
    SIZE: tl.constexpr,
    SEMANTIC: tl.constexpr,
    UP: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    TILES_E: tl.constexpr,
    POW_TILES_E: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Takes the code of the book before, subtracts its row, and searches tiles of `book`.

    Every program of a tile of rows does the first two for itself; the one of the first tile of the
    book also writes them. book BOOKS only takes the last code.
    """
    tiles_t = tl.cdiv(T, BLOCK_T)
    tiles_e = TILES_E
    if book == BOOKS:
        tiles_e = 1
    last = book - 1
    for tile in tl.range(program, tiles_e * tiles_t, programs):
        tile_e = tile // tiles_t
        t = tile % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)
        t_in = t < T
        safe = tl.minimum(t, T - 1)
        code = tl.zeros((BLOCK_T,), tl.int32)
        if book > 0:
            tiles = tl.arange(0, POW_TILES_E)
            at = (last % 2 * TILES_E + tiles)[None, :] * T + safe[:, None]
            there = (tiles < TILES_E)[None, :]
            best = tl.load(best_ptr + at, mask=there, other=float("inf"), cache_modifier=".cg")
            index = tl.load(index_ptr + at, mask=there, other=SIZE - 1, cache_modifier=".cg")
            least = tl.min(best, axis=1)
            code = tl.min(tl.where(best == least[:, None], index, SIZE - 1), axis=1)
            if tile_e == 0:
                given = code
                if HAS_ROWS:
                    _, _, _, home = find_lines(
                        t, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, offsets_ptr, B,
                        halvings, UP, 1, 0, False,
                    )  # fmt: skip
                    given = tl.where(home >= 0, code, 0)
                to = codes_ptr + t.to(tl.int64) * stride_codes + last
                tl.store(to, given.to(tl.int64), mask=t_in)
        if book < BOOKS:
            begins = (book == 0) | (book == SEMANTIC)
            group = (book >= SEMANTIC).to(tl.int32)
            copy = tl.where(begins, 0, (book - group * SEMANTIC - 1) % 2)
            e = tile_e * BLOCK_E + tl.arange(0, BLOCK_E)
            e_safe = tl.minimum(e, SIZE - 1)
            dots = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
            for first in tl.range(0, D, BLOCK_K):
                k = first + tl.arange(0, BLOCK_K)
                k_in = k < D
                row = ((group * 2 + copy) * T + safe)[:, None] * D + k[None, :]
                left = tl.load(left_ptr + row, mask=k_in[None, :], other=0.0, cache_modifier=".cg")
                took = tables_ptr + (last * SIZE + code).to(tl.int64)[:, None] * D + k[None, :]
                took = tl.load(took, mask=k_in[None, :] & ~begins, other=0.0)
                left -= took.to(tl.float32)
                if (tile_e == 0) & ~begins:
                    to = ((group * 2 + 1 - copy) * T + t)[:, None] * D + k[None, :]
                    tl.store(left_ptr + to, left, mask=t_in[:, None] & k_in[None, :])
                entry = tables_ptr + (book * SIZE + e_safe).to(tl.int64)[None, :] * D + k[:, None]
                entry = tl.load(entry, mask=k_in[:, None], other=0.0)
                dots = tl.dot(left, entry.to(tl.float32), dots, input_precision="ieee")
            half = tl.load(half_ptr + book * SIZE + e_safe).to(tl.float32)
            distance = tl.where((e < SIZE)[None, :], half[None, :] - dots, float("inf"))
            least = tl.min(distance, axis=1)
            index = tl.min(tl.where(distance == least[:, None], e[None, :], SIZE - 1), axis=1)
            at = (book % 2 * TILES_E + tile_e) * T + t
            tl.store(best_ptr + at, least, mask=t_in)
            tl.store(index_ptr + at, index, mask=t_in)


@triton.jit
def project_stage(
    x_ptr, semantic_ptr, acoustic_ptr, left_ptr, T, stride_x, DIM: tl.constexpr, D: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The first stage alone (interpreter)."""
    project_latents(
        tl.program_id(0), tl.num_programs(0), x_ptr, semantic_ptr, acoustic_ptr, left_ptr, T,
        stride_x, DIM, D, BLOCK_T, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit
def search_stage(
    book, tables_ptr, half_ptr, codes_ptr, left_ptr, best_ptr, index_ptr, offsets_ptr, slots_ptr,
    exec_ptr, positions_ptr, B, halvings, T, stride_codes, D: tl.constexpr, BOOKS: tl.constexpr,
    SIZE: tl.constexpr, SEMANTIC: tl.constexpr, UP: tl.constexpr, HAS_ROWS: tl.constexpr,
    TILES_E: tl.constexpr, POW_TILES_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One book alone (interpreter)."""
    search_book(
        tl.program_id(0), tl.num_programs(0), book, tables_ptr, half_ptr, codes_ptr, left_ptr,
        best_ptr, index_ptr, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, B, halvings, T,
        stride_codes, D, BOOKS, SIZE, SEMANTIC, UP, HAS_ROWS, TILES_E, POW_TILES_E, BLOCK_T,
        BLOCK_E, BLOCK_K,
    )  # fmt: skip


@triton.jit
def quantize_books(
    x_ptr, semantic_ptr, acoustic_ptr, tables_ptr, half_ptr, codes_ptr, left_ptr, best_ptr,
    index_ptr, counter_ptr, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, B, halvings, T,
    stride_x, stride_codes, DIM: tl.constexpr, D: tl.constexpr, BOOKS: tl.constexpr,
    SIZE: tl.constexpr, SEMANTIC: tl.constexpr, UP: tl.constexpr, HAS_ROWS: tl.constexpr,
    TILES_E: tl.constexpr, POW_TILES_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All stages in one cooperative launch."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    project_latents(
        program, programs, x_ptr, semantic_ptr, acoustic_ptr, left_ptr, T, stride_x, DIM, D,
        BLOCK_T, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    for book in tl.range(0, BOOKS + 1):
        grid_barrier(counter_ptr, programs, book + 1)
        search_book(
            program, programs, book, tables_ptr, half_ptr, codes_ptr, left_ptr, best_ptr, index_ptr,
            offsets_ptr, slots_ptr, exec_ptr, positions_ptr, B, halvings, T, stride_codes, D, BOOKS,
            SIZE, SEMANTIC, UP, HAS_ROWS, TILES_E, POW_TILES_E, BLOCK_T, BLOCK_E, BLOCK_K,
        )  # fmt: skip
    # The last to leave clears the counters: nobody waits for them any more.
    if tl.atomic_add(counter_ptr + 1, 1, sem="acq_rel", scope="gpu") == programs - 1:
        tl.store(counter_ptr, 0)
        tl.store(counter_ptr + 1, 0)
