"""Sessions that hear noise, driven by hand."""

from __future__ import annotations

from time import perf_counter_ns

import numpy as np

from microturn.runtime import Runtime, Session

NOISE_RMS = 0.05


class Crowd:
    """Sessions of a runtime driven by hand, that hear noise."""

    def __init__(self, runtime: Runtime, seed: int) -> None:
        self.runtime = runtime
        self.sessions: list[Session] = []
        self._seed = seed
        self._noise = np.random.default_rng(seed)

    def grow(self, sessions: int) -> None:
        """To so many, their windows full from then on."""
        while len(self.sessions) < sessions:
            self.sessions.append(self.runtime.open(seed=self._seed + len(self.sessions)))
        for _ in range(2):  # the first tick of a session resets it, the next is warm
            self.tick()
        self.runtime.foresight.age(range(sessions))
        self.tick()

    def tick(self) -> int:
        """One tick of every session; the ns it took, waiting apart: a clock by hand does not
        wait.
        """
        shape = self.runtime.family.shape
        for session in self.sessions:
            heard = NOISE_RMS * self._noise.standard_normal(shape.input_samples)
            session.push_audio(np.clip(heard, -1, 1), shape.input_rate)
        began = perf_counter_ns()
        self.runtime.tick()
        took = perf_counter_ns() - began
        outputs = [session.poll() for session in self.sessions]
        if outputs[0] is None:
            reason = self.sessions[0].closed_reason
            raise RuntimeError(f"a session made no output: {reason}")
        return took
