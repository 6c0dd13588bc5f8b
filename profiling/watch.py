"""A runtime that serves, looked at for a while.

    from microturn.profiling.watch import profile

    with profile(runtime, "out"):
        time.sleep(10)

Outside the block nothing is installed and nothing costs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from microturn.profiling import document, report
from microturn.profiling.recorder import Recorder
from microturn.runtime import Runtime
from microturn.runtime.ceilings import measure
from microturn.runtime.timing import timer


@contextmanager
def profile(runtime: Runtime, out: str | os.PathLike[str]) -> Iterator[Recorder]:
    """Records the ticks that run inside; on leaving, writes profile.json, report.html and
    report.md to the folder. Ceilings are measured last, beside whatever the runtime does then.

    Raises ValueError where a device runs ticks out of the host's sight, and when no tick ran;
    OSError.
    """
    if runtime.config.device != "cpu":
        raise ValueError(
            f"device={runtime.config.device!r} replays graphs, in which the host sees no op; "
            f"use torch.profiler and the engine's `places`"
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with Recorder(runtime) as recorder:
        yield recorder
    found = document.of_run(
        runtime,
        tuple(recorder.ticks),
        (),
        ceilings=measure(timer(torch.device("cpu"))),
        threads=runtime.config.threads,
    )
    document.save(found, folder)
    report.write(found, folder)
