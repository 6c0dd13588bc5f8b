"""A kernel that only reads.

x_ptr   [SIZE] int32
out_ptr [programs] int32, what each program read, folded by exclusive or
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_all(x_ptr, out_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Program p reads blocks p, p + programs, ... SIZE is a multiple of BLOCK."""
    at = tl.arange(0, BLOCK)
    folded = tl.zeros((BLOCK,), tl.int32)
    for block in tl.range(tl.program_id(0), SIZE // BLOCK, tl.num_programs(0), num_stages=STAGES):
        folded ^= tl.load(x_ptr + block * BLOCK + at, eviction_policy="evict_first")
    tl.store(out_ptr + tl.program_id(0), tl.xor_sum(folded))
