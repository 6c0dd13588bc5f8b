"""How fast the host is at the moment: one small fixed work, timed now and then.

A machine that is shared, or grows warm, changes its speed by more than what a soak looks for. What
a step takes in units of this work does not change with the host, and changes with a session's age
just the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

EVERY_S = 1.0
"""Between two measurements."""

REPEATS = 5
"""Of which the fastest counts: what interrupts the work does not."""

SHAPE = (8, 1024, 1024)
"""Rows, inputs, outputs of its product: 4 MB of weights, which a step streams too."""


class Sample(NamedTuple):
    """at: ns on the runtime's clock; ms: what the work took."""

    at: int
    ms: float


class Yardstick:
    """Call it as often as you like: it works for about 3 ms every `EVERY_S` seconds."""

    def __init__(self, work: Callable[[], object] | None = None) -> None:
        """work: in place of the product, made of torch in one thread."""
        self._work = work or _product()
        self._due = 0
        self.samples: list[Sample] = []

    def __call__(self, now: int) -> None:
        """now: ns on the runtime's clock."""
        if now < self._due:
            return
        self._due = now + int(EVERY_S * 1e9)
        took = []
        for _ in range(REPEATS):
            began = time.perf_counter_ns()
            self._work()
            took.append(time.perf_counter_ns() - began)
        self.samples.append(Sample(now, min(took) / 1e6))

    def ms(self, first: int, last: int) -> float | None:
        """Median between two times; None where there was no sample."""
        found = [sample.ms for sample in self.samples if first <= sample.at <= last]
        return median(found) if found else None


def _product() -> Callable[[], object]:
    import torch

    rows, inputs, outputs = SHAPE
    x, w = torch.ones(rows, inputs), torch.ones(inputs, outputs)
    torch.set_num_threads(1)  # of this thread; the one that steps has its own count
    return lambda: x @ w
