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
    # Plain reads while waiting: atomics of all programs on one address queue up behind each other.
    while tl.load(counter_ptr, volatile=True) < programs * epoch:
        pass
    tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def grid_leave(counter_ptr, programs, epochs):
    """After the last of `epochs` barriers: the last program to call this makes the counter zero."""
    if tl.atomic_add(counter_ptr, 1, sem="relaxed", scope="gpu") == programs * (epochs + 1) - 1:
        tl.store(counter_ptr, 0)
