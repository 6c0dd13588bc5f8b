"""Audio between a device callback and a loop, without a lock."""

from __future__ import annotations

import numpy as np

from microturn.runtime.cli.audio import Samples


class Ring:
    """A bounded queue of mono fp32 samples for one writer thread and one reader thread.

    Neither side waits: a write that does not fit drops its end, a read gives what is there. Only
    the writer moves `_written` and only the reader moves `_taken`, each after its copy is done.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 sample, got {capacity}")
        self._data = np.zeros(capacity, np.float32)
        self._written = 0
        self._taken = 0

    def __len__(self) -> int:
        return self._written - self._taken

    def write(self, samples: Samples) -> int:
        """Appends what fits of samples [N]; returns how many were dropped."""
        capacity = len(self._data)
        fits = min(len(samples), capacity - len(self))
        at = self._written % capacity
        first = min(fits, capacity - at)
        self._data[at : at + first] = samples[:first]
        self._data[: fits - first] = samples[first:fits]
        self._written += fits
        return len(samples) - fits

    def read_into(self, out: Samples) -> int:
        """Fills the front of out [N] with the oldest samples; returns how many."""
        capacity = len(self._data)
        count = min(len(out), len(self))
        at = self._taken % capacity
        first = min(count, capacity - at)
        out[:first] = self._data[at : at + first]
        out[first:count] = self._data[: count - first]
        self._taken += count
        return count

    def read(self, count: int) -> Samples:
        """At most count samples, the oldest first."""
        out = np.zeros(min(count, len(self)), np.float32)
        self.read_into(out)
        return out
