"""Cosine and sine of an angle counted in turns."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cos_sin(turns):
    """fp32 of fp64 turns, to the last bit or so. CUDA's own keep a table in memory for angles of
    many turns, which are none here: whole ones are taken off in fp64, however many there are.

    A quarter turn is cut off next; the polynomials are those of Cephes for +- 1/8 of a turn.
    """
    quarters = (turns - tl.floor(turns)) * 4.0
    quadrant = tl.floor(quarters + 0.5)
    r = ((quarters - quadrant) * 1.5707963267948966).to(tl.float32)
    z = r * r
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r
    c = (2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2
    c = c * z * z - 0.5 * z + 1.0
    which = quadrant.to(tl.int32) & 3
    swapped = (which & 1) != 0
    cos = tl.where(swapped, s, c)
    sin = tl.where(swapped, c, s)
    cos = tl.where((which == 1) | (which == 2), -cos, cos)
    sin = tl.where(which >= 2, -sin, sin)
    return cos, sin
