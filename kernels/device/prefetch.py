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
