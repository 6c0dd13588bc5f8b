"""Profiles made up by hand."""

from __future__ import annotations

from typing import Any

import numpy as np


def made_up(**lines: float) -> dict[str, Any]:
    """A profile of 20 like ticks: ops and their ms; each has 1 MB, 1 MFLOP and a floor of 1 ms."""
    ms = np.ones(20)
    every = [
        {
            "part": "append",
            "op": op,
            "calls": 2,
            "bytes": 10**6,
            "flops": 10**6,
            "floor_ms": 1.0,
            "torch_calls": None,
            "ms": list(value * ms),
        }
        for op, value in lines.items()
    ]
    model = sum(lines.values())
    zero = list(0 * ms)
    ticks = dict.fromkeys(("wake", "gather", "plan", "emit"), zero)
    return {
        "case": "preset=made-up,S=1,tick_ms=100",
        "untrained": True,
        "device": "a <machine> & more",
        "versions": {"torch": "2"},
        "git": None,
        "date": "2026-01-01T00:00:00+00:00",
        "tick_ms": 100,
        "sessions": 1,
        "threads": 1,
        "load_1min": 0.0,
        "ceilings": {"read_gbps": 1.0, "copy_gbps": 1.0, "tflops": 1.0, "dtype": "fp32"},
        "overhead": {"plain_ms_p50": None, "recorded_ms_p50": None, "share": None},
        "wall_from": "phases",
        "left_out": 0,
        "ticks": ticks
        | {name: list(model * ms) for name in ("wall", "step", "model")}
        | {"slack": list(100 - model * ms)},
        "lines": every,
        "levels": [],
        "capacity": {"sessions": 3, "margin_ms": 5.0, "mark": "fitted"},
        "gpu": [],
    }
