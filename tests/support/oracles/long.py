"""The wide net at its nightly size: `make oracle-long COUNT=1000 SEED=0`.

Prints the seed, how many draws were compared, rejected and failed and the worst difference, and
writes them with what the draws had in them to RESULTS/<device>/oracle_long.json. A difference above
the bar does not end the run; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis.strategies import SearchStrategy

from microturn.bench import schema
from microturn.bench.machine import meta
from oracles import inkling, mimi
from oracles.net import (
    CodecCase,
    TooClose,
    TrunkCase,
    codec_cases,
    codec_differences,
    trunk_cases,
    trunk_differences,
)

LARGEST = 1e30
"""What stands for an infinite difference in JSON."""
KEPT = 5
"""Failing draws that the document holds in full."""


def cast(
    name: str,
    cases: SearchStrategy[Any],
    differences: Callable[[Any], dict[str, float]],
    bar: float,
    count: int,
    start: int,
) -> dict[str, Any]:
    """One family's row of the document."""
    worst: dict[str, float] = {}
    features: Counter[str] = Counter()
    drawn: set[TrunkCase | CodecCase] = set()
    failed: list[str] = []
    failures = rejected = 0
    began = time.perf_counter()

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def compare(case: Any) -> None:
        nonlocal failures, rejected
        if case in drawn:
            return
        try:
            found = differences(case)
        except TooClose:
            rejected += 1
            reject()
        except Exception:
            found = {traceback.format_exc(limit=-1).strip().splitlines()[-1]: LARGEST}
        drawn.add(case)
        features.update(name for name, has in case.features.items() if has)
        for how, value in found.items():
            worst[how] = max(worst.get(how, 0.0), min(value, LARGEST))
        if max(found.values()) > bar:
            failures += 1
            if len(failed) < KEPT:
                failed.append(f"{found} {case}")
            print(f"{name}: FAILED {found} {case}", flush=True)
        if len(drawn) % 100 == 0:
            print(summary(), flush=True)

    def summary() -> str:
        return (
            f"{name}: seed {start}, {len(drawn)} configurations, {rejected} rejected, "
            f"{failures} failures, worst difference {max(worst.values(), default=0):.2g} "
            f"(bar {bar:g}), {time.perf_counter() - began:.0f} s"
        )

    compare()
    print(summary(), flush=True)
    return {
        "op": "oracle",
        "case": f"family={name},seed={start},configs={len(drawn)}",
        "dtype": "fp32",
        "provider": "microturn",
        "seed": start,
        "configs": len(drawn),
        "rejected": rejected,
        "failures": failures,
        "max_abs_diff": max(worst.values()),
        "bar": bar,
        "worst": worst,
        "features": dict(features),
        "failed": failed,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="trunks; half as many codecs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of <device>/oracle_long.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        cast(
            "inkling",
            trunk_cases(),
            trunk_differences,
            inkling.BAR,
            options.count,
            options.seed,
        )
        | {"note": f"logits against transformers {version('transformers')}"},
        cast(
            "mimi",
            codec_cases(),
            codec_differences,
            mimi.BAR,
            max(1, options.count // 2),
            options.seed,
        )
        | {"note": f"codes that differ and audio against moshi {version('moshi')}"},
    ]
    about = meta(threads=1)
    document = schema.document("oracle_long", about, rows)
    if options.results:
        path = options.results / about["device_slug"] / "oracle_long.json"
        schema.write(path, document)
        print(f"wrote {path}")
    print(schema.dumps(document))
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
