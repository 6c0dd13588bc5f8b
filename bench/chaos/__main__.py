"""The `chaos` suite: `make chaos`. Worlds of consecutive seeds until so many session ticks were
committed; exit status 1 when a promise was broken or a fault happened too rarely to say much.

One row a setting. Rows add to schema 1: seed (of the first world), worlds, session_ticks, ticks,
misses, skipped (each as the runtime counted it and the log of the engine says), violations,
broken (the seeds and promises of those), faults (how often each happened, by name), seconds.
Nothing here is timed: the clock is virtual and the model says back what it hears.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from microturn.bench import schema
from microturn.bench.chaos.ledger import Broken
from microturn.bench.chaos.world import LOOPS, OVERFLOWS, Setting, World
from microturn.bench.machine import meta

SETTINGS = tuple(
    Setting(0, input_overflow=given, output_overflow=made, loop=loop)
    for loop in LOOPS
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
    "image_seen",
    "image_replaced",
    "image_flood",
    "oversize_image",
    "step_stalled",
    "clock_jumped",
    "late",
    "degraded",
    "caught_up",
    "overlapped",
    "stepped_apart",
)
"""Faults of which a full run must see LEAST each."""


class Row:
    """Worlds of one setting, seeded `seed`, `seed` + 1 and so on."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._seed = seed
        self._seconds = 0.0
        self._faults: Counter[str] = Counter()
        names = ("worlds", "session_ticks", "ticks", "misses", "skipped")
        self._counts: Counter[str] = Counter(dict.fromkeys(names, 0))
        self.broken: list[str] = []

    @property
    def session_ticks(self) -> int:
        return self._counts["session_ticks"]

    def live(self, session_ticks: int) -> None:
        """One world more."""
        seed = self._seed + self._counts["worlds"]
        world, began = World(replace(self._setting, seed=seed)), time.perf_counter()
        try:
            world.run(session_ticks)
        except Broken as error:
            self.broken.append(f"seed {seed}: {error}")
        finally:
            world.close()
        made = world.runtime.metrics
        self._seconds += time.perf_counter() - began
        self._faults.update(world.faults)
        self._counts.update(
            worlds=1,
            session_ticks=made.session_ticks,
            ticks=made.batch_ticks,
            misses=made.misses,
            skipped=made.skipped_ticks,
        )

    def document(self) -> dict[str, Any]:
        return {
            "op": "chaos",
            "case": self._setting.case,
            "dtype": "fp32",
            "provider": "microturn",
            "seed": self._seed,
            **self._counts,
            "violations": len(self.broken),
            "broken": self.broken[:20],
            "faults": dict(sorted(self._faults.items())),
            "seconds": round(self._seconds, 1),
        }


def chaos(session_ticks: int, seed: int, minutes: float = float("inf")) -> list[dict[str, Any]]:
    """The rows of all settings, a world of each in turn, until so many session ticks were committed
    or so many minutes are over; tells on stderr how far it is.
    """
    rows = [Row(setting, seed + 1_000_000 * index) for index, setting in enumerate(SETTINGS)]
    began = told = time.perf_counter()
    for row in itertools.cycle(rows):
        done, now = sum(row.session_ticks for row in rows), time.perf_counter()
        if done >= session_ticks or now - began > 60 * minutes:
            break
        row.live(min(ONE_WORLD, session_ticks))
        if now - told > 10:
            told = now
            broken = sum(len(row.broken) for row in rows)
            said = f"{done:,} of {session_ticks:,} session ticks, {broken} worlds broken"
            print(f"{said}, {now - began:.0f} s", file=sys.stderr, flush=True)
    return [row.document() for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--session-ticks", type=int, default=10_000_000, help="over all settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most")
    parser.add_argument("--results", type=Path, help="folder of <device>/chaos.json")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # every planted fault would be told
    rows = chaos(options.session_ticks, options.seed, options.minutes)
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
