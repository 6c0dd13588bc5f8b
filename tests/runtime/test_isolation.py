"""What a session gives depends on what it was given, and on nothing and nobody else."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.runtime.errors import CloseCode
from microturn.runtime.runtime import Runtime

MakeRuntime = Callable[..., Runtime]
TICK = 1_600


def script(session: Any, tools: SimpleNamespace, tick: int) -> None:
    """What the session under test is given before each tick."""
    if tick % 5 != 4:
        session.push_audio(tools.noise(TICK, tick), 16_000)
    if tick % 4 == 2:
        session.append_context("some words for the model " * 3)


def alone(runtime: Runtime, tools: SimpleNamespace, ticks: int) -> list[Any]:
    session = runtime.open("be brief", seed=5)
    for tick in range(ticks):
        script(session, tools, tick)
        runtime.tick()
    outputs = tools.drain(session)
    assert len(outputs) == ticks
    session.close()
    return tools.bits(outputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_streaming_equals_offline_for_random_cuts(
    make_runtime: MakeRuntime, tools: SimpleNamespace, rate: int
) -> None:
    audio = tools.noise(rate * 13 // 10)
    runtime = make_runtime()
    session = runtime.open(seed=5)
    session.push_audio(audio, rate)
    session.close(drain=True)
    while session.state != "closed":
        runtime.tick()
    offline = tools.bits(tools.drain(session))
    assert len(offline) == 13
    for seed in range(3):
        rng = random.Random(seed)
        cuts = [0, *sorted(rng.sample(range(len(audio)), 40)), len(audio)]
        session = runtime.open(seed=5)
        for a, b in pairwise(cuts):
            session.push_audio(audio[a:b], rate)
            if session.stats.waiting_audio_ms >= 100 and rng.random() < 0.7:
                runtime.tick()
        session.close(drain=True)
        while session.state != "closed":
            runtime.tick()
        assert tools.bits(tools.drain(session)) == offline


def test_the_comparison_of_bits_sees_one_changed_sample(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runtime = make_runtime()
    runs = []
    for change in (0.0, 1e-3):
        session = runtime.open(seed=5)
        audio = tools.noise(TICK)
        audio[-1] += change
        session.push_audio(audio, 16_000)
        for _ in range(3):
            runtime.tick()
        runs.append(tools.bits(tools.drain(session)))
        session.close()
    assert all(a != b for a, b in zip(*runs, strict=True))


def test_a_session_is_bit_identical_alone_and_in_any_company(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    ticks = 20
    want = alone(make_runtime(), tools, ticks)
    rng = random.Random(0)
    runtime = make_runtime(max_sessions=4)
    others = [runtime.open(seed=k) for k in range(2)]
    session = runtime.open("be brief", seed=5)
    for tick in range(ticks):
        script(session, tools, tick)
        for other in list(others):
            match rng.randrange(6):
                case 0:
                    other.close()
                    others.remove(other)
                case 1:
                    other.pause()
                case 2:
                    other.resume()
                case 3:
                    other.append_context("noise " * rng.randrange(30))
                case 4:
                    other.push_audio(tools.noise(rng.randrange(5_000), tick), 16_000)
        if len(others) < 3 and rng.random() < 0.5:
            others.append(runtime.open("hello " * rng.randrange(40)))
        runtime.tick()
    assert tools.bits(tools.drain(session)) == want


def test_the_next_tenant_equals_a_fresh_start(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    want = alone(make_runtime(), tools, 8)
    runtime = make_runtime(max_sessions=1)
    for ticks in (1, 2, 7):
        former = runtime.open("something else entirely " * 9)
        for tick in range(ticks):
            former.push_audio(np.full(TICK, 0.9, np.float32), 16_000)
            runtime.tick()
            assert tick or former.state in ("warming", "live")
        former.close()
        assert alone(runtime, tools, 8) == want


def test_a_failed_tick_is_as_if_it_had_not_been(
    make_runtime: MakeRuntime, tools: SimpleNamespace, make_family: Any
) -> None:
    """Feeding follows the committed ticks; in the third, fourth and ninth attempts both rows raise,
    together and alone, after every arena was written.
    """
    want = alone(make_runtime(), tools, 10)
    family = make_family()
    runtime = make_runtime(model=family, max_sessions=2)
    other = runtime.open(seed=1)
    session = runtime.open("be brief", seed=5)
    first, suspects = [True] * 3, [True] * 2
    family.raise_in = [*[False] * 2, *first, *suspects, *[False] * 5, *first]
    tick = fed = 0
    for _ in range(10 + 3):
        if fed == tick:
            script(session, tools, tick)
            other.push_audio(tools.noise(TICK, 77 + tick), 16_000)
            fed += 1
        before = session.stats.ticks
        runtime.tick()
        tick += session.stats.ticks - before
    assert runtime.metrics.failed_steps == 8
    assert tools.bits(tools.drain(session)) == want
    assert session.stats.inserted_silence_ms == 200.0
    assert other.stats.inserted_silence_ms == 0.0


def test_numbers_that_are_not_finite_end_one_session_only(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    want = alone(make_runtime(), tools, 6)
    runtime = make_runtime()
    bad, session = runtime.open(seed=1), runtime.open("be brief", seed=5)
    for tick in range(6):
        script(session, tools, tick)
        if tick == 2:
            bad.push_audio(np.full(10, tools.POISON), 16_000)
        runtime.tick()
    assert tools.bits(tools.drain(session)) == want
    assert len(tools.drain(bad)) == 2
    assert bad.closed_reason is not None and bad.closed_reason.code is CloseCode.NOT_FINITE
    assert "tick 2" in bad.closed_reason.detail
    assert alone(runtime, tools, 6) == want, "the slot of the bad session is as good as new"


def test_steps_that_keep_raising_close_the_sessions_in_them(
    make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace
) -> None:
    family = make_family()
    runtime = make_runtime(model=family)
    session, resting = runtime.open(), runtime.open()
    resting.pause()
    family.raise_in = [True] * 3
    for _ in range(2):
        runtime.tick()
        assert session.state == "warming" and not tools.drain(session)
    runtime.tick()
    assert session.closed_reason is not None
    assert session.closed_reason.code is CloseCode.STEP_FAILED
    assert "RuntimeError: planted" in session.closed_reason.detail
    assert resting.state == "paused"
    resting.resume()
    runtime.tick()
    assert len(tools.drain(resting)) == 1
    summary = runtime.summary()
    assert (summary["failed_steps"], summary["ticks"]) == (3, 1)
    assert summary["sessions_closed"] == {"step_failed": 1}


def test_a_recording_that_fails_costs_no_session(
    make_runtime: MakeRuntime, tools: SimpleNamespace, tmp_path: Path, caplog: Any
) -> None:
    want = alone(make_runtime(), tools, 6)
    runtime = make_runtime(dump=tmp_path)

    def full(*args: Any) -> None:
        raise OSError("no space left")

    runtime._loop._record = full
    assert alone(runtime, tools, 6) == want
    assert "tick 3 could not be recorded" in caplog.text


def test_a_session_whose_text_cannot_be_made_ends_alone(
    make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace
) -> None:
    family = make_family()
    runtime = make_runtime(model=family)
    first, second = runtime.open(), runtime.open()

    class Broken(type(family.tokenizer)):  # type: ignore[misc]
        calls = 0

        def piece(self, token_id: int) -> str:
            self.calls += 1
            if self.calls == 1:
                raise KeyError(token_id)
            return str(super().piece(token_id))

    family.tokenizer.__class__ = Broken
    runtime.tick()
    assert first.closed_reason is not None and first.closed_reason.code is CloseCode.INTERNAL
    assert second.state == "live" and len(tools.drain(second)) == 1
