"""A session of the real model, saved twice by a process that is killed while it writes the second
time. Run as a script: the file to save in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from microturn.runtime import Runtime, Sampling, Session, VirtualClock
from microturn.runtime import snapshot as files

IN_THE_MIDDLE = "in the middle of the second"
TICKS = 3
"""Before the first save: one to warm up, two that hear and speak."""


def make(**config: Any) -> Runtime:
    config = {"max_sessions": 1, "seed": 1, "input_queue_ms": 2_000, **config}
    return Runtime(preset="interaction-tiny", clock=VirtualClock(), **config)


def begin(runtime: Runtime) -> Session:
    how = Sampling(text_temperature=1.0, audio_temperature=1.0)
    return runtime.open("hello " * 70, seed=5, sampling=how)


def hear(session: Session, tick: int) -> None:
    """Half a tick more or less at a rate of its own, an image and words."""
    rng = np.random.default_rng(tick)
    samples = 3_307 if tick % 2 else 1_103
    session.push_audio(rng.standard_normal(samples).astype(np.float32) * 0.1, 22_050)
    if tick % 4 == 1:
        session.push_image(rng.integers(0, 256, (120, 120, 3), np.uint8), still=True)
    if tick % 5 == 2:
        session.append_context("hello there " * 30)


def main(file: str) -> None:
    parts, saves = files._parts, 0

    def stuck(snapshot: files.Snapshot) -> Iterator[bytes | memoryview]:
        nonlocal saves
        saves += 1
        for k, part in enumerate(parts(snapshot)):
            yield part
            if saves == 2 and k == 9:
                print(IN_THE_MIDDLE, flush=True)
                sys.stdin.read()

    files._parts = stuck
    runtime = make()
    session = begin(runtime)
    for tick in range(TICKS + 1):
        hear(session, tick)
        runtime.tick()
        if tick >= TICKS - 1:
            session.snapshot(file)


if __name__ == "__main__":
    main(sys.argv[1])
