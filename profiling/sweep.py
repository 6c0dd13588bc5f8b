"""Ticks at several numbers of sessions, and what admission foretold of them.

Before a number of sessions comes, admission knows warm-up and the numbers before it: "predicted".
Then every other tick of that number is held out, and "fitted" is what a predictor like admission's
says that was made of the other half, at all numbers. Both are compared with what was held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microturn.runtime.admission import Load, TickPredictor
from microturn.runtime.foresight import amounts_of

if TYPE_CHECKING:
    from microturn.profiling.crowd import Crowd
    from microturn.runtime import Runtime

Levels = list[dict[str, Any]]


def sweep(runtime: Runtime, crowd: Crowd, counts: Sequence[int], ticks: int) -> Levels:
    """counts: rising; ticks: held out at each, as many are fitted to. The levels of a document."""
    admission = runtime.foresight.predictor
    fitted = TickPredictor(amounts_of(runtime.family, runtime.config.device), now=lambda: 0)
    levels: Levels = []
    for sessions in counts:
        load = runtime.foresight.admission.load(sessions)
        predicted = said(admission, load, "predicted")
        crowd.grow(sessions)
        held_out = []
        for _ in range(ticks):
            crowd.tick()
            fitted.observe(*admission.ticks(sessions)[-1])
            crowd.tick()
            held_out.append(admission.ticks(sessions)[-1][1] / 1e6)
        p50, p99 = np.percentile(held_out, (50, 99), method="inverted_cdf")
        measured = {"measured_ms_p50": float(p50), "measured_ms_p99": float(p99)}
        levels.append({"sessions": sessions, "ticks": ticks, **measured, **predicted})
    for level in levels:
        load = runtime.foresight.admission.load(level["sessions"])
        level |= said(fitted, load, "fitted")
    return levels


def said(predictor: TickPredictor, load: Load, name: str) -> dict[str, float | None]:
    """p50 and p99 in ms, None where nothing was measured yet."""
    p50, p99 = predictor.p50(load), predictor.p99(load)
    return {f"{name}_ms_p50": p50 and p50 / 1e6, f"{name}_ms_p99": p99 and p99 / 1e6}
