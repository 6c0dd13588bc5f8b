"""Whether two series differ, without a guess about how they are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from math import erfc, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 1000


def mann_whitney(a: Array, b: Array) -> float:
    """Two-sided p of the rank-sum test that a and b were drawn alike: normal approximation with
    ties and continuity corrected, fair from about 8 values each.
    """
    n, m = len(a), len(b)
    values, inverse, counts = np.unique(
        np.concatenate([a, b]), return_inverse=True, return_counts=True
    )
    if len(values) == 1:
        return 1.0
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    total = n + m
    ties = float((counts.astype(float) ** 3 - counts).sum()) / (total * (total - 1))
    spread = sqrt(n * m / 12 * (total + 1 - ties))
    return erfc(max(0.0, abs(u - n * m / 2) - 0.5) / spread / sqrt(2))


def holm(p: Sequence[float]) -> list[float]:
    """The same p values, adjusted for there being so many of them."""
    order = np.argsort(p, kind="stable")
    found, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        found[index] = largest
    return found


def ratio_interval(a: Array, b: Array, seed: int = 0) -> tuple[float, float]:
    """95 % of the bootstrapped ratios of b's median to a's."""
    draw = np.random.default_rng(seed)

    def medians(values: Array) -> Array:
        chosen = draw.integers(0, len(values), (RESAMPLES, len(values)))
        found: Array = np.median(values[chosen], axis=1)
        return found

    low, high = np.percentile(medians(b) / np.maximum(medians(a), 1e-12), (2.5, 97.5))
    return float(low), float(high)
