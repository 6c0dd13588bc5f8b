"""A profile as data: JSON of version 1. Times in ms unless a name says otherwise.

    {"schema": 1, "kind": "profile", "case": ..., "untrained": ..., "device": ..., "versions": ...,
     "git": ..., "date": ..., "tick_ms": ..., "sessions": ..., "threads": ..., "load_1min": ...,
     "ceilings": {"read_gbps": ..., "copy_gbps": ..., "tflops": ..., "dtype": ...},
     "overhead": {"plain_ms_p50": ..., "recorded_ms_p50": ..., "share": ...},
     "wall_from": "outside" (measured around the tick) or "phases" (their sum),
     "left_out": ticks that ran other ops than most, or the model more than once,
     "ticks": {"wall": [...], "wake": [...], "gather": [...], "plan": [...], "step": [...],
               "model": [...], "emit": [...], "slack": [...]},
     "lines": [{"part": ..., "op": ..., "calls": ..., "bytes": ..., "flops": ..., "floor_ms": ...,
                "torch_calls": ..., "ms": [one of each tick]}],
     "timeline": [[part, op, start, end]] of the median step, from its beginning,
     "levels": [{"sessions": ..., "ticks": ..., "measured_ms_p50": ..., "predicted_ms_p50": ...
                (from what was measured before), "fitted_ms_p50": ... (from other ticks), and p99
                of each; ticks: held out, see `sweep`}],
     "capacity": {"sessions": ..., "margin_ms": ..., "mark": "fitted"},
     "gpu": [{"at_ms": ..., "power_w": ..., ...}]}

"model" is the tick program within "step". A line's `op` is "between ops" for the model's own glue
before the ops of that part. The lines of a tick add up to its "model". Bytes, flops and floor are
null where the family does not say what it costs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from microturn.profiling.attribution import Attributed, attribute
from microturn.profiling.recorder import Tick
from microturn.runtime import Runtime, machine
from microturn.runtime.ceilings import Ceilings
from microturn.runtime.versions import versions

SCHEMA = 1
KIND = "profile"
FILE = "profile.json"
PHASES = ("gather", "plan", "step", "emit")
MOST_SESSIONS = 4096

Profile = dict[str, Any]


def of_run(
    runtime: Runtime,
    recorded: Sequence[Tick],
    plain: Sequence[int],
    *,
    ceilings: Ceilings,
    threads: int,
    levels: Sequence[Mapping[str, Any]] = (),
    gpu: Sequence[Mapping[str, Any]] = (),
    torch_calls: Mapping[str, float] | None = None,
) -> Profile:
    """plain: ns of ticks without the recorder, none where there were none. Raises ValueError when
    nothing can be attributed.
    """
    family, config = runtime.family, runtime.config
    itemsize = 4 if config.device == "cpu" else 2
    found = attribute(recorded, family, itemsize)
    admission = runtime.foresight.admission
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "case": f"preset={family.name},S={found.ticks[0].sessions},tick_ms={config.tick_ms}",
        "untrained": not family.trained,
        "device": machine.device_name(config.device),
        "versions": versions(),
        "git": machine.git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tick_ms": config.tick_ms,
        "sessions": found.ticks[0].sessions,
        "threads": threads,
        "load_1min": round(os.getloadavg()[0], 2),
        "ceilings": ceilings.as_json(),
        "overhead": _overhead(plain, recorded),
        "wall_from": "phases" if found.ticks[0].wall is None else "outside",
        "left_out": len(recorded) - len(found.ticks),
        "ticks": _ticks(found.ticks),
        "lines": _lines(found, ceilings, torch_calls or {}),
        "timeline": _timeline(found),
        "levels": [dict(level) for level in levels],
        "capacity": {
            "sessions": admission.most(MOST_SESSIONS),
            "margin_ms": admission.margin_ns / 1e6,
            "mark": "fitted",
        },
        "gpu": [dict(sample) for sample in gpu],
    }


def _overhead(plain: Sequence[int], recorded: Sequence[Tick]) -> dict[str, Any]:
    walls = [tick.wall for tick in recorded if tick.wall is not None]
    if not plain or not walls:
        return {"plain_ms_p50": None, "recorded_ms_p50": None, "share": None}
    without, under = float(np.median(plain)) / 1e6, float(np.median(walls)) / 1e6
    return {
        "plain_ms_p50": without,
        "recorded_ms_p50": under,
        "share": float(np.median(np.array(walls) / np.array(plain))) - 1,
    }


def _ticks(ticks: Sequence[Tick]) -> dict[str, list[float]]:
    names = ("wake", *PHASES, "slack")
    found = {name: [getattr(t.timing, name) / 1e6 for t in ticks] for name in names}
    phases = [sum(found[name][i] for name in PHASES) for i in range(len(ticks))]
    found["wall"] = [
        total if tick.wall is None else tick.wall / 1e6
        for tick, total in zip(ticks, phases, strict=True)
    ]
    found["model"] = [(t.steps[0].end - t.steps[0].start) / 1e6 for t in ticks]
    return found


def _lines(
    found: Attributed, ceilings: Ceilings, torch_calls: Mapping[str, float]
) -> list[dict[str, Any]]:
    made = []
    for line in found.lines:
        known = line.bytes is not None and line.flops is not None
        made.append(
            {
                **line.key._asdict(),
                "calls": line.calls,
                "bytes": line.bytes,
                "flops": line.flops,
                "floor_ms": ceilings.floor_us(line.bytes or 0, line.flops or 0) / 1e3
                if known
                else None,
                "torch_calls": torch_calls.get(line.key.op),
                "ms": [round(ns / 1e6, 6) for ns in line.ns],
            }
        )
    return made


def _timeline(found: Attributed) -> list[list[Any]]:
    began = found.example_start
    return [
        [*key, (event.start - began) / 1e6, (event.end - began) / 1e6]
        for key, event in found.example
    ]


def save(profile: Profile, folder: Path) -> Path:
    """Strict JSON, profile.json in the folder. Raises OSError."""
    path = folder / FILE
    path.write_text(json.dumps(profile, allow_nan=False) + "\n", encoding="utf-8")
    return path


def load(folder: Path) -> Profile:
    """The profile in a folder, or in a file. Raises ValueError saying what is wrong with it,
    OSError.
    """
    path = folder / FILE if folder.is_dir() else folder
    try:
        found = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ValueError(f"{path} is no profile; `microturn-profile run --out DIR` makes one")
    if found.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} is a profile of version {found.get('schema')!r}, this reads version {SCHEMA}; "
            f"make it again"
        )
    return found
