"""The bounded queues between a session's caller and the ticks.

The input queues are not locked here: the inbox that owns them is. What a tick takes is held until
it is settled, so that a step that raises gives everything back. No torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.delegation import DelegationEvent
from microturn.runtime.image_input import PATCH
from microturn.runtime.output import Output

Samples = NDArray[np.float32]
Patches = NDArray[np.int16]

NO_SAMPLES: Samples = np.empty(0, np.float32)
NO_PATCHES: Patches = np.empty((0, *PATCH), np.int16)


class AudioQueue:
    """Samples, first in first out, at most `capacity` of them waiting."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._chunks: deque[Samples] = deque()
        self._size = 0
        self._held: Samples | None = None
        self._gap = False

    def __len__(self) -> int:
        return self._size

    def push(self, samples: Samples, *, tail: bool = False) -> int:
        """Drops the oldest samples that no longer fit and says how many; none for a tail, which
        is the short last end of what was accepted before.
        """
        if len(samples):
            self._chunks.append(samples)
            self._size += len(samples)
        return 0 if tail else self.keep(self.capacity)

    def keep(self, count: int) -> int:
        """Drops all but the newest `count` and says how many that were."""
        dropped = self._size - count
        if dropped <= 0:
            return 0
        self._take(dropped)
        self._gap = self._held is not None
        return dropped

    def hold(self, count: int) -> Samples:
        """Up to `count` of the oldest samples, out of reach of drops until settled."""
        self._gap = False
        self._held = self._take(min(count, self._size))
        return self._held

    def settle(self, committed: bool) -> int:
        """The held samples are gone, or first in the queue again.

        Where newer ones were dropped meanwhile they would stand before a gap, so they, the oldest,
        are dropped too: says how many.
        """
        held, self._held = self._held, None
        if committed or held is None or not len(held):
            return 0
        if self._gap:
            return len(held)
        self._chunks.appendleft(held)
        self._size += len(held)
        return 0

    def clear(self) -> None:
        self._chunks.clear()
        self._size = 0
        self._held = None

    def waiting(self) -> Samples:
        """A copy of what waits, oldest first."""
        return np.concatenate(self._chunks) if self._chunks else NO_SAMPLES

    def _take(self, count: int) -> Samples:
        parts: list[Samples] = []
        left = count
        while left:
            chunk = self._chunks.popleft()
            if len(chunk) > left:
                self._chunks.appendleft(chunk[left:])
                chunk = chunk[:left]
            parts.append(chunk)
            left -= len(chunk)
        self._size -= count
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else NO_SAMPLES


class IdQueue:
    """Context token ids, first in first out, at most `capacity` waiting."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._ids: deque[int] = deque()
        self._held = 0

    def __len__(self) -> int:
        return len(self._ids)

    def push(self, ids: Sequence[int]) -> bool:
        """All or nothing: False when they do not fit."""
        if len(self._ids) + len(ids) > self.capacity:
            return False
        self._ids.extend(ids)
        return True

    def hold(self, count: int) -> tuple[int, ...]:
        if not self._ids:
            return ()
        held = tuple(islice(self._ids, count))
        self._held = len(held)
        return held

    def waiting(self) -> tuple[int, ...]:
        """What waits, oldest first."""
        return tuple(self._ids)

    def settle(self, committed: bool) -> None:
        for _ in range(self._held if committed else 0):
            self._ids.popleft()
        self._held = 0

    def clear(self) -> None:
        self._ids.clear()
        self._held = 0


@dataclass(eq=False)
class Frame:
    """An image that waits.

    done     patches that were committed
    started  seen in part: a newer frame does not take its place
    """

    patches: Patches
    still: bool
    done: int = 0
    started: bool = False


class PatchQueue:
    """Image patches [N, *PATCH], image by image, at most `capacity` waiting."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._frames: deque[Frame] = deque()
        self._held = 0
        self.replaced = 0

    def __len__(self) -> int:
        return sum(len(f.patches) - f.done for f in self._frames) if self._frames else 0

    def push(self, patches: Patches, still: bool) -> bool:
        """A video frame takes the place of one that has not started. False when it does not fit:
        nothing changed.
        """
        stale = None
        if not still:
            stale = next((f for f in self._frames if not (f.still or f.started)), None)
        waiting = len(self) - (len(stale.patches) if stale else 0)
        if waiting + len(patches) > self.capacity:
            return False
        if stale is not None:
            self._frames.remove(stale)
            self.replaced += 1
        self._frames.append(Frame(patches, still))
        return True

    def waiting(self) -> tuple[Frame, ...]:
        """What waits, oldest first, without what was seen of it."""
        return tuple(Frame(f.patches[f.done :], f.still, 0, f.started) for f in self._frames)

    def refill(self, frames: Sequence[Frame]) -> None:
        """Takes what waited elsewhere, as it was."""
        self._frames.extend(frames)

    def hold(self, count: int) -> Patches:
        if not self._frames:
            return NO_PATCHES
        parts = []
        for frame in self._frames:
            if count <= 0:
                break
            part = frame.patches[frame.done : frame.done + count]
            frame.started = True
            parts.append(part)
            count -= len(part)
        self._held = sum(map(len, parts))
        return np.concatenate(parts) if parts else NO_PATCHES

    def settle(self, committed: bool) -> None:
        left = self._held if committed else 0
        while left:
            frame = self._frames[0]
            step = min(left, len(frame.patches) - frame.done)
            frame.done += step
            left -= step
            if frame.done == len(frame.patches):
                self._frames.popleft()
        self._held = 0

    def clear(self) -> None:
        self._frames.clear()
        self._held = 0


MAX_CARRIED = 64
"""Events of dropped outputs that the next one carries: the newest so many."""


class OutboxState(NamedTuple):
    """What a snapshot holds of an outbox: what was not read, and what was dropped before it."""

    outputs: tuple[Output, ...]
    carried: tuple[DelegationEvent, ...]
    unmarked: int
    unmarked_ms: float
    dropped: int


class OutputQueue:
    """Outputs waiting to be read, by threads or by event loops; the ticks never wait for either."""

    def __init__(self, capacity: int, drop_oldest: bool) -> None:
        self._capacity = capacity
        self._drop_oldest = drop_oldest
        self._outputs: deque[Output] = deque()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._readers = 0
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._finished = False
        self._unmarked = 0
        self._unmarked_ms = 0.0
        self._carried: deque[DelegationEvent] = deque(maxlen=MAX_CARRIED)
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._outputs)

    def put(self, output: Output) -> bool:
        """False when the queue is full and nothing may be dropped from it."""
        with self._lock:
            if self._finished:
                return True
            if len(self._outputs) >= self._capacity:
                if not self._drop_oldest:
                    return False
                lost = self._outputs.popleft()
                self._carried.extend(lost.delegations)
                self._unmarked_ms += lost.dropped_ms
                self._unmarked += 1
                self.dropped += 1
            self._outputs.append(output)
            self._wake()
        return True

    def save(self) -> OutboxState:
        """A copy; the outputs stay."""
        with self._lock:
            outputs, carried = tuple(self._outputs), tuple(self._carried)
            return OutboxState(outputs, carried, self._unmarked, self._unmarked_ms, self.dropped)

    def load(self, state: OutboxState) -> bool:
        """A new outbox goes on where another stood. False when more waited there than may here."""
        if len(state.outputs) > self._capacity:
            return False
        with self._lock:
            self._outputs.extend(state.outputs)
            self._carried.extend(state.carried)
            _, _, self._unmarked, self._unmarked_ms, self.dropped = state
        return True

    def finish(self) -> None:
        """Nothing more comes; what waits can still be read."""
        with self._lock:
            self._finished = True
            self._wake()

    def poll(self) -> Output | None:
        with self._lock:
            return self._pop()

    def get(self, timeout: float | None = None) -> Output | None:
        """Waits for an output. None at the end, or after `timeout` seconds."""
        with self._lock:
            self._readers += 1
            try:
                self._changed.wait_for(lambda: self._outputs or self._finished, timeout)
            finally:
                self._readers -= 1
            return self._pop()

    async def get_async(self) -> Output | None:
        """Waits without holding up the running event loop. None at the end."""
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        try:
            while True:
                with self._lock:
                    if self._outputs or self._finished:
                        return self._pop()
                    waiter[1].clear()
                    self._waiters.add(waiter)
                await waiter[1].wait()
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def _pop(self) -> Output | None:
        if not self._outputs:
            return None
        output = self._outputs.popleft()
        if self._unmarked:
            dropped_ms = output.dropped_ms + self._unmarked_ms
            output = replace(
                output,
                dropped_outputs=self._unmarked,
                dropped_ms=dropped_ms,
                delegations=(*self._carried, *output.delegations),
            )
            self._unmarked, self._unmarked_ms = 0, 0.0
            self._carried.clear()
        return output

    def _wake(self) -> None:
        if self._readers:
            self._changed.notify_all()
        for loop, event in self._waiters:
            with contextlib.suppress(RuntimeError):  # the loop was closed under its waiter
                loop.call_soon_threadsafe(event.set)
