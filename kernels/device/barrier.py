"""A barrier over all programs of a cooperative launch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def grid_barrier(counter_ptr, programs, epoch):
    """Waits until every program has called it for the `epoch`-th time (from 1 on).

    counter_ptr one int32, zero when the kernel starts; the last stage resets it. Stores before the
    barrier are visible to loads after it in every program: release on arrival, acquire on leaving.
    Two programs that race for an address must still not both be on the same side of it.
    """
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < programs * epoch:
        pass
    tl.debug_barrier()
