"""Exact confidence bounds of rates. No torch."""

from __future__ import annotations

import math
from functools import lru_cache


def upper95(events: int, trials: int) -> float:
    """The one-sided 95 % upper bound (Clopper and Pearson) of a rate seen as events of trials.

    The p at which `events` or fewer would be seen with probability 0.05. Without events it is
    1 - 0.05^(1/trials), about 3 / trials; without trials it is 1. Raises ValueError unless
    0 <= events <= trials.
    """
    if not 0 <= events <= trials:
        raise ValueError(f"{events} events of {trials} trials make no rate")
    if events == trials:
        return 1.0
    low, high = events / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(events, trials, middle) > 0.05:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=4096)
def quantile_rank(trials: int, q: float, confidence: float) -> int | None:
    """Which of so many samples, the smallest being 1, is at least the q-quantile of what they were
    drawn from, with that confidence. None when not even the largest is: at 95 %, 0.99 wants 299.

    Raises ValueError unless q and confidence lie between 0 and 1.
    """
    if not (0 < q < 1 and 0 < confidence < 1):
        raise ValueError(f"q and confidence must lie between 0 and 1, got {q} and {confidence}")
    for rank in range(max(1, math.ceil(trials * q)), trials + 1):
        if _at_most(rank - 1, trials, q) >= confidence:
            return rank
    return None


def _at_most(events: int, trials: int, p: float) -> float:
    """P(binomial(trials, p) <= events), its terms in logarithms, from the largest down."""
    if p >= 1.0:
        return 0.0
    log_p, log_q = math.log(p), math.log1p(-p)
    total = 0.0
    for k in range(events, -1, -1):
        term = math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * log_p
            + (trials - k) * log_q
        )
        total += term
        if term < total * 1e-17:
            break
    return total
