"""Asking for memory before it may be used: what a kernel does while the one before it ends."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def prefetch_l2(pointers):
    """Cache lines of a tile of pointers into L2. Not in the interpreter: guard by PDL."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_flat(start, COUNT: tl.constexpr, program, programs):
    """COUNT elements from `start` on into L2, by lines of 128 bytes, each program its share."""
    LINE: tl.constexpr = 1024 // start.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = (COUNT + LINE - 1) // LINE
    for first in tl.range(program * 128, LINES, programs * 128):
        line = tl.minimum(first + tl.arange(0, 128), LINES - 1)
        prefetch_l2(start + line * LINE)
