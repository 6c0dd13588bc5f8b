"""The `chaos` suite: `make chaos`. Worlds of consecutive seeds until so many session ticks were
committed; exit status 1 when a promise was broken or a fault happened too rarely to say much.

One row a setting. Rows add to schema 1: seed (of the first world), worlds, session_ticks, ticks,
misses, skipped (each as the runtime counted it and the log of the engine says), violations,
broken (the seeds and promises of those), faults (how often each happened, by name), seconds.
Nothing here is timed: the clock is virtual and the model says back what it hears.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from microturn.bench import schema
from microturn.bench.chaos.ledger import Broken
from microturn.bench.chaos.world import OVERFLOWS, Setting, World
from microturn.bench.machine import meta

SETTINGS = tuple(
    Setting(0, input_overflow=given, output_overflow=made)
    for given in OVERFLOWS
    for made in OVERFLOWS
)
ONE_WORLD = 20_000
"""Session ticks of a world: long enough for hundreds of sessions one after the other."""

LEAST = 1_000
PLANNED = (
    "closed_in_step",
    "closed_twice",
    "closed_while_warming",
    "open_refused",
    "open_out_of_memory",
    "row_raised_once",
    "step_raised",
    "ended_step_failed",
    "ended_out_of_memory",
    "ended_not_finite",
    "ended_input_failed",
    "ended_internal",
    "ended_input_overflow",
    "ended_slow_reader",
    "ended_overloaded",
    "outputs_dropped",
    "audio_flood",
    "context_flood",
    "silent",
    "burst",
    "paused",
    "drained",
    "oversize_push",
    "wrong_rate",
    "nan_input",
    "step_stalled",
    "clock_jumped",
    "late",
    "degraded",
    "caught_up",
)
"""Faults of which a full run must see LEAST each."""


def chaos(setting: Setting, session_ticks: int, seed: int, progress: bool) -> dict[str, Any]:
    """The row of a setting, its worlds seeded `seed`, `seed` + 1 and so on."""
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    broken: list[str] = []
    began, worlds = time.perf_counter(), 0
    while counts["session_ticks"] < session_ticks:
        world = World(replace(setting, seed=seed + worlds))
        try:
            world.run(min(ONE_WORLD, session_ticks - counts["session_ticks"]))
        except Broken as error:
            broken.append(f"seed {seed + worlds}: {error}")
        finally:
            world.close()
        worlds += 1
        faults += world.faults
        made = world.runtime.metrics
        counts["session_ticks"] += max(1, made.session_ticks)
        counts["ticks"] += made.batch_ticks
        counts["misses"] += made.misses
        counts["skipped"] += made.skipped_ticks
        if progress and worlds % 10 == 0:
            took = time.perf_counter() - began
            said = f"{counts['session_ticks']:,} of {session_ticks:,}, {len(broken)} broken"
            print(f"{setting.case}: {said}, {took:.0f} s", file=sys.stderr, flush=True)
    return {
        "op": "chaos",
        "case": setting.case,
        "dtype": "fp32",
        "provider": "microturn",
        "seed": seed,
        "worlds": worlds,
        **counts,
        "violations": len(broken),
        "broken": broken[:20],
        "faults": dict(sorted(faults.items())),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--session-ticks", type=int, default=10_000_000, help="over all settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of <device>/chaos.json")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # every planted fault would be told
    share = -(-options.session_ticks // len(SETTINGS))
    rows = [
        chaos(setting, share, options.seed + 1_000_000 * index, progress=True)
        for index, setting in enumerate(SETTINGS)
    ]
    about = meta(threads=1)
    document = schema.document("chaos", about, rows)
    if options.results:
        path = options.results / about["device_slug"] / "chaos.json"
        schema.write(path, document)
        print(f"wrote {path}")
    seen: Counter[str] = Counter()
    for row in rows:
        seen.update(row["faults"])
    rare = {name: seen[name] for name in PLANNED if seen[name] < LEAST}
    if rare:
        print(f"fewer than {LEAST} of {rare}: run more session ticks")
    print(schema.dumps(document))
    return int(bool(rare) or any(row["violations"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
