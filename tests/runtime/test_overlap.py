"""The plain loop and the overlapped one, side by side: the same outputs, a tick later."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from microturn.bench.chaos.echo import EchoEngine, EchoFamily
from microturn.runtime.clock import VirtualClock
from microturn.runtime.engines import check_cuda
from microturn.runtime.errors import ConfigError
from microturn.runtime.gpu_engine import GpuEngine
from microturn.runtime.graphs import InlineMachine
from microturn.runtime.runtime import Runtime

SLOTS, TICKS = 4, 60
MakeRuntime = Callable[..., Runtime]


def lives(runtime: Runtime, tools: Any, seed: int, family: Any) -> dict[int, list[Any]]:
    """Sessions come, hear, read, pause, break and go; by the order they came, what they gave."""
    draw = random.Random(seed)
    live: dict[int, Any] = {}
    made: dict[int, list[Any]] = {}
    for tick in range(TICKS):
        for number in [n for n in live if draw.random() < 0.04]:
            live.pop(number).close()
        if len(live) < SLOTS and draw.random() < 0.4:
            number = len(made)
            words = "word " * draw.choice([0, 3, 40])
            live[number] = runtime.open(words.strip() or None, seed=number)
            made[number] = []
        for number, session in sorted(live.items()):
            audio = tools.noise(1_600, 1000 * tick + number)
            if draw.random() < 0.02:
                audio[3] = tools.POISON
            act = draw.random()
            pushes = [lambda s=session, a=audio: s.push_audio(a, 16_000)] * (act < 0.9)
            pushes += [lambda s=session: s.append_context("two words")] * (act < 0.1)
            pushes += [session.pause] * (0.9 < act < 0.95) + [session.resume] * (act > 0.93)
            for push in pushes:
                try:
                    push()
                except Exception as error:  # it ended meanwhile, a tick sooner or later
                    assert "closed" in str(error) or "ended" in str(error), error
        runtime.tick()
        for number, session in sorted(live.items()):
            made[number] += tools.drain(session)
    runtime.close()
    for number, session in live.items():
        made[number] += tools.drain(session)
    return made


@pytest.mark.parametrize("seed", range(3))
def test_both_loops_give_the_same_outputs(
    seed: int, make_family: Any, make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runs = []
    for loop in ("plain", "overlapped"):
        family = make_family()
        engine = GpuEngine(family, SLOTS, InlineMachine())
        runtime = make_runtime(
            model=family, engine=engine, clock=VirtualClock(), loop=loop, max_sessions=SLOTS
        )
        runs.append(lives(runtime, tools, seed, family))
        assert runtime.metrics.failed_steps == 0 and runtime.summary()["graph_misses"] == 0
    plain, overlapped = runs
    assert plain.keys() == overlapped.keys() and len(plain) > 4
    equal = 0
    for number, outputs in plain.items():
        others = overlapped[number]
        both = min(len(outputs), len(others))
        assert abs(len(outputs) - len(others)) <= 1, "a session that is closed loses one at most"
        assert tools.bits(outputs[:both]) == tools.bits(others[:both])
        for a, b in zip(outputs, others, strict=False):
            assert (a.tick, a.start_ms, a.inserted_silence_ms) == (
                b.tick,
                b.start_ms,
                b.inserted_silence_ms,
            )
        equal += both
    assert equal > 25


def test_a_launch_that_raises_is_stepped_apart(
    make_family: Any, make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    bits = []
    for loop in ("plain", "overlapped"):
        family = make_family()
        engine = GpuEngine(family, 2, InlineMachine())
        runtime = make_runtime(model=family, engine=engine, loop=loop, max_sessions=2)
        session = runtime.open(seed=1)
        made = []
        for k in range(8):
            session.push_audio(tools.noise(1_600, k), 16_000)
            if k == 3:
                family.raise_in = [True]
            runtime.tick()
            made += tools.drain(session)
        runtime.close()
        bits.append(tools.bits(made + tools.drain(session)))
        assert runtime.metrics.failed_steps == 1
        assert runtime.metrics.batch_ticks == runtime.metrics.session_ticks == 7
        assert runtime.metrics.registry.get_sample_value(
            "microturn_tick_seconds_count", {"phase": "slack"}
        ) == len(bits[-1])
    assert bits[0] == bits[1] and len(bits[0]) == 7


def test_admission_counts_what_the_device_takes_and_not_its_wait_for_the_host() -> None:
    """A tick that is launched is collected a period later, however short it was: taken for work,
    that would leave no room for anybody.
    """
    clock = VirtualClock()
    family: Any = EchoFamily()
    engine: Any = EchoEngine(8, clock, lambda rows: (20 + 9 * rows) * 1_000_000)
    with Runtime(
        model=family,
        engine=engine,
        clock=clock,
        loop="overlapped",
        admission="predict",
        max_sessions=8,
    ) as runtime:
        sessions = [runtime.open() for _ in range(4)]
        for _ in range(600):
            runtime.tick()
            for session in sessions:
                session.poll()
        summary = runtime.summary()
        assert summary["misses"] == 0 and summary["predicted_sessions"] >= 7
        assert summary["step_ms"]["max"] == pytest.approx(56, rel=1e-2)
        runtime.open()


def test_what_cannot_overlap_is_said(make_family: Any, make_runtime: MakeRuntime) -> None:
    with pytest.raises(ConfigError, match="got CpuEngine; use loop='plain'"):
        make_runtime(model=make_family(), loop="overlapped")


def test_a_missing_gpu_is_said(
    make_family: Any, make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU, torch finds none"):
        make_runtime(model=make_family(), device="cuda")
    with pytest.raises(ConfigError, match="device='cpu' computes in auto, float32, got 'fp8'"):
        make_runtime(model=make_family(), dtype="fp8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ConfigError, match=r"Tesla T4 has 7\.5"):
        check_cuda()
