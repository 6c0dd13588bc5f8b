"""95 % confidence intervals of shares, means, medians and rates over scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.96
RESAMPLES = 2000
NONE_SEEN = 3.0
"""Events expected of a process that stays silent with a probability of 5 %."""


class Estimate(NamedTuple):
    """low and high enclose the mean (median, rate) with 95 % confidence; `scenes` were seen."""

    mean: float
    low: float
    high: float
    scenes: int


def estimate(values: Sequence[float]) -> Estimate:
    """Wilson's interval where every value is 0 or 1, a percentile bootstrap (seeded) elsewhere.
    Raises ValueError of no values.
    """
    if not len(values):
        raise ValueError("an estimate wants at least one value")
    count, mean = len(values), float(np.mean(values))
    if all(value in (0.0, 1.0) for value in values):
        return Estimate(mean, *_wilson(mean, count), count)
    rng = np.random.default_rng(0)
    means = rng.choice(np.asarray(values, float), (RESAMPLES, count)).mean(1)
    low, high = (float(v) for v in np.quantile(means, (0.025, 0.975)))
    return Estimate(mean, low, high, count)


def median(groups: Sequence[Sequence[float]]) -> Estimate:
    """The median of all values of all groups, each what one scene had; its interval by a bootstrap
    over scenes. Raises ValueError of no values.
    """
    kept = [np.asarray(group, float) for group in groups if len(group)]
    if not kept:
        raise ValueError("an estimate wants at least one value")
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(kept), (RESAMPLES, len(kept)))
    medians = [float(np.median(np.concatenate([kept[i] for i in some]))) for some in drawn]
    low, high = (float(v) for v in np.quantile(medians, (0.025, 0.975)))
    return Estimate(float(np.median(np.concatenate(kept))), low, high, len(kept))


def rate(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Of (events, time) of each scene, all events by all the time; its interval by a bootstrap over
    scenes. Where nothing ever happened, 3 events in that time could still have been missed.
    Raises ValueError of no time.
    """
    events, time = np.asarray(pairs, float).reshape(-1, 2).T
    if not time.sum() > 0:
        raise ValueError("a rate wants some time")
    mean = float(events.sum() / time.sum())
    if not events.any():
        return Estimate(mean, 0.0, NONE_SEEN / float(time.sum()), len(time))
    drawn = np.random.default_rng(0).integers(0, len(time), (RESAMPLES, len(time)))
    rates = events[drawn].sum(1) / time[drawn].sum(1)
    low, high = (float(v) for v in np.quantile(rates, (0.025, 0.975)))
    return Estimate(mean, low, high, len(time))


def _wilson(share: float, count: int) -> tuple[float, float]:
    """E. B. Wilson, 1927: the score interval of a binomial share."""
    spread = Z * Z / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
