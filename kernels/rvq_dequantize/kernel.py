"""The Triton kernel of rvq_dequantize: a sum of table rows, the projection folded into them.

codes_ptr  [T, Q] int64, stride_codes and stride_book between its rows and columns
folded_ptr [BOOKS, SIZE, DIM] fp32, BOOKS >= Q
y_ptr      [T, DIM], stride_y between rows
offsets_ptr, slots_ptr, exec_ptr, positions_ptr, B, halvings, UP: see kernels/device/lines.py
           (HAS_ROWS)
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.lines import find_lines


@triton.jit
def sum_books(
    codes_ptr,
    folded_ptr,
    y_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    B,
    halvings,
    stride_codes,
    stride_book,
    stride_y,
    Q: tl.constexpr,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    UP: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """One frame, BLOCK_D of its values. A code out of range reads the nearest row there is."""
    t = tl.program_id(0) + tl.arange(0, 1)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    runs = t >= 0
    if HAS_ROWS:
        _, _, _, home = find_lines(
            t, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, offsets_ptr, B, halvings, UP, 1, 0,
            False,
        )  # fmt: skip
        runs = home >= 0
    inside = runs[:, None] & (d < DIM)[None, :]
    total = tl.zeros((1, BLOCK_D), tl.float32)
    for q in tl.static_range(Q):
        code = tl.load(codes_ptr + t * stride_codes + q * stride_book, mask=runs, other=0)
        code = tl.minimum(tl.maximum(code, 0), SIZE - 1)
        row = folded_ptr + (q * SIZE + code)[:, None] * DIM
        total += tl.load(row + d[None, :], mask=inside, other=0.0)
    to = y_ptr + t.to(tl.int64)[:, None] * stride_y + d[None, :]
    tl.store(to, total.to(y_ptr.dtype.element_ty), mask=(d < DIM)[None, :])
