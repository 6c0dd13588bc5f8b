"""The runtime with the model it exists for, at the tiny preset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.model.interaction import load
from microturn.runtime import ConfigError, Runtime, Sampling, VirtualClock, replay
from microturn.runtime.cpu_engine import CpuEngine

MakeRuntime = Callable[..., Runtime]
TICKS = 6


@pytest.fixture(scope="module")
def family() -> Any:
    return load("interaction-tiny", tick_ms=100, seed=1)


@pytest.fixture(scope="module")
def engine(family: Any) -> Iterator[CpuEngine]:
    yield CpuEngine(family, 3)


def speak(runtime: Runtime, session: Any, tools: SimpleNamespace, ticks: int = TICKS) -> list[Any]:
    for tick in range(ticks):
        session.push_audio(tools.noise(2_205, tick), 22_050)
        if tick == 2:
            session.append_context("hello there", speak=True)
        runtime.tick()
    return list(tools.drain(session))


def test_a_session_is_the_same_alone_in_company_after_a_tenant_and_in_replay(
    tmp_path: Path,
    make_runtime: MakeRuntime,
    family: Any,
    engine: CpuEngine,
    tools: SimpleNamespace,
) -> None:
    runtime = make_runtime(model=family, engine=engine, dump=tmp_path)
    sampling = Sampling(text_temperature=1.0, audio_temperature=1.0)
    session = runtime.open("hello " * 70, seed=5, sampling=sampling)
    runtime.tick()
    assert session.poll() is None, "warming"
    alone = speak(runtime, session, tools)
    session.close()
    assert len(alone) == TICKS
    assert all(np.isfinite(o.audio).all() and o.audio.shape == (2_400,) for o in alone)
    assert alone[0].untrained and len({o.audio.tobytes() for o in alone}) == TICKS

    other = runtime.open(seed=9)
    runtime.tick()
    again = runtime.open("hello " * 70, seed=5, sampling=sampling)
    third = runtime.open(seed=11)
    runtime.tick()
    step = family.step

    def failing(lines: Any, arenas: Any) -> Any:
        step(lines, arenas)
        raise RuntimeError("planted")

    family.step = failing
    try:
        runtime.tick()
    finally:
        family.step = step
    other.push_audio(tools.noise(1_600), 16_000)
    third.pause()
    company = speak(runtime, again, tools)
    assert tools.bits(company) == tools.bits(alone)
    different = runtime.summary()
    assert different["failed_steps"] == 1
    runtime.close()
    for name in (session.id, again.id, other.id):
        report = replay(tmp_path / name, family)
        assert report.exact and report.ticks >= TICKS, report.difference


def test_another_seed_says_something_else(
    make_runtime: MakeRuntime, family: Any, engine: CpuEngine, tools: SimpleNamespace
) -> None:
    runtime = make_runtime(model=family, engine=engine)
    hot = Sampling(text_temperature=1.0, audio_temperature=1.0)
    both = [runtime.open(seed=seed, sampling=hot) for seed in (1, 2)]
    for _ in range(2):
        runtime.tick()
    a, b = (tools.bits(tools.drain(session)) for session in both)
    assert a != b


def test_a_preset_is_loaded_by_name_and_an_unknown_one_is_refused() -> None:
    with Runtime(preset="interaction-tiny", max_sessions=1, clock=VirtualClock()) as runtime:
        assert runtime.ready and runtime.family.name == "interaction-tiny"
        assert runtime.warm_up_ms > 0 and runtime.state_bytes > 1_000_000
    with pytest.raises(ConfigError, match="interaction-tiny"):
        Runtime(preset="interaction-huge")
    with pytest.raises(ConfigError, match="multiple of 50"):
        Runtime(tick_ms=70, clock=VirtualClock())
