"""What the suites of whole systems share: a model, its clock and its engine, made for each run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from microturn.bench.machine import meta
from microturn.bench.traffic import MS, Heard, Traffic, noise
from microturn.model.cost import CountsCost
from microturn.runtime.admission import Amounts, counted
from microturn.runtime.engines import WEIGHTS
from microturn.runtime.foresight import amounts_of

if TYPE_CHECKING:
    from microturn.model.family import ModelFamily
    from microturn.runtime import Runtime


class MakeRuntime(Protocol):
    """A runtime of so many sessions whose clock does not run yet; real: a clock that does not wait
    for the work; admission: see RuntimeConfig.
    """

    def __call__(self, sessions: int, *, real: bool, admission: str) -> Runtime: ...


@dataclass(frozen=True)
class System:
    """A model on this machine.

    amounts       of work, for predictions; rows: of an ordinary tick of a session
    window_ticks  after which a session's windows are full
    seed          of weights, noise and sampling
    """

    name: str
    tick_ms: int
    input_rate: int
    make: MakeRuntime
    amounts: Amounts = counted
    rows: int = 3
    window_ticks: int = 0
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    dtype: str = "fp32"
    trained: bool = False

    @property
    def heard(self) -> Heard:
        return noise(self.input_rate, self.input_rate * self.tick_ms // 1000, self.seed)

    def traffic(self, sessions: int, *, real: bool, admission: str = "slots") -> Traffic:
        return Traffic(self.make(sessions, real=real, admission=admission), self.heard)

    def case(self, sessions: int, **more: Any) -> str:
        pairs = {"preset": self.name, "S": sessions, "tick_ms": self.tick_ms, **more}
        return ",".join(f"{key}={value}" for key, value in pairs.items())

    def row(self, op: str, case: str) -> dict[str, Any]:
        return {
            "op": op,
            "case": case,
            "dtype": self.dtype,
            "provider": "microturn",
        }

    def meta(self) -> dict[str, Any]:
        """With the load of the machine before the run: others' work makes every number worse."""
        return {
            **meta(self.device, threads=self.threads),
            "load_1min_before": round(os.getloadavg()[0], 2),
            "trained": self.trained,
        }


def system_of(
    family: ModelFamily, *, seed: int, threads: int, device: str = "cpu", dtype: str = "auto"
) -> System:
    """A family on a device; dtype: see RuntimeConfig."""
    shape = family.shape
    window = family.window_rows if isinstance(family, CountsCost) else 0

    def make(sessions: int, *, real: bool, admission: str) -> Runtime:
        from microturn.runtime import FastClock, RealClock, Runtime

        return Runtime(
            model=family,
            device=device,
            dtype=dtype,
            tick_ms=shape.tick_ms,
            max_sessions=sessions,
            input_queue_ms=max(500, 5 * shape.tick_ms),
            seed=seed,
            threads=threads,
            clock=RealClock() if real else FastClock(),
            start=False,
            admission=admission,
        )

    return System(
        family.name,
        shape.tick_ms,
        shape.input_rate,
        make,
        amounts_of(family, device),
        rows=1 + shape.frames,
        window_ticks=window // (2 * shape.frames),
        seed=seed,
        threads=threads,
        device=device,
        dtype=WEIGHTS[device].get(dtype, dtype),
        trained=family.trained,
    )


def join(traffic: Traffic, sessions: int, *, seed: int, aged: bool) -> bool:
    """Opens so many sessions that stay, and lets each have a tick by hand. aged: their windows are
    full from then on, where the engine can pretend that; whether it did.
    """
    for index in range(sessions):
        traffic.open(until=1 << 62, seed=seed + index)
    traffic.runtime.tick()
    return aged and traffic.runtime.foresight.age(range(sessions))


def seconds(value: float) -> int:
    """In ns."""
    return int(value * 1000) * MS


Told = Callable[[str], None]
"""Gets a line about how far a run has come."""
