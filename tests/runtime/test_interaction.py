"""The runtime with the model it exists for, at the tiny preset."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from microturn.model.interaction import load
from microturn.runtime import ConfigError, Runtime, Sampling, VirtualClock, replay
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.image_input import to_patches

MakeRuntime = Callable[..., Runtime]
TICKS = 6


@pytest.fixture(scope="module")
def family() -> Any:
    return load("interaction-tiny", tick_ms=100, seed=1, trained=False)


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
    codec = family.model.codec
    decode = codec.forward

    def failing(*args: Any) -> Any:
        decode(*args)
        raise RuntimeError("planted")

    codec.forward = failing
    try:
        runtime.tick()
    finally:
        del codec.forward
    other.push_audio(tools.noise(1_600), 16_000)
    third.pause()
    company = speak(runtime, again, tools)
    assert tools.bits(company) == tools.bits(alone)
    different = runtime.summary()
    assert different["failed_steps"] == 5, "of three rows, then of one, of two and of each"
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


def picture(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_in_any_form_changes_what_its_session_says_and_no_other(
    tmp_path: Path,
    make_runtime: MakeRuntime,
    family: Any,
    engine: CpuEngine,
    tools: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen in the logits of the tick it comes with, and in every bit after it."""
    logits: list[Any] = []
    original = family.model.trunk.logits

    def spy(hidden: Any) -> Any:
        made = original(hidden)
        logits.append(made.clone())
        return made

    monkeypatch.setattr(family.model.trunk, "logits", spy)
    array = picture(70, 90)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    forms = {"none": None, "array": array, "pil": Image.fromarray(array), "bytes": file.getvalue()}
    runs = {}
    for name, image in forms.items():
        runtime = make_runtime(model=family, engine=engine, dump=tmp_path / name)
        logits.clear()
        session, other = runtime.open(seed=3), runtime.open(seed=4)
        for tick in range(3):
            for one in (session, other):
                one.push_audio(tools.noise(1_600, tick), 16_000)
            if tick == 1 and image is not None:
                session.push_image(image)
                assert session.stats.pending_rows == 6
            runtime.tick()
        outputs = [tools.drain(one) for one in (session, other)]
        runs[name] = SimpleNamespace(
            session=tools.bits(outputs[0]), other=tools.bits(outputs[1]), logits=list(logits)
        )
        runtime.close()
        report = replay(tmp_path / name / session.id, family)
        assert report.exact and report.ticks == 3, report.difference
    plain, seen = runs["none"], runs["array"]
    assert all(runs[name].session == seen.session for name in ("pil", "bytes"))
    assert all(run.other == plain.other for run in runs.values())
    assert seen.session[0] == plain.session[0] and seen.session[1:] != plain.session[1:]
    before, during = 1, 2  # two output positions a tick: the last of the first, the next
    assert bool((seen.logits[before] == plain.logits[before]).all())
    assert float((seen.logits[during][0] - plain.logits[during][0]).abs().max()) > 0.05
    assert bool((seen.logits[during][1] == plain.logits[during][1]).all())


def test_a_large_image_is_fed_in_order_over_several_ticks(
    make_runtime: MakeRuntime, family: Any, engine: CpuEngine, tools: SimpleNamespace
) -> None:
    fed: list[Any] = []
    tick = family.tick
    runtime = make_runtime(model=family, engine=engine)
    session = runtime.open(seed=3)
    image = picture(400, 630)  # 10 rows of 16
    family.tick = lambda given, *rest: fed.append(given.patches.clone()) or tick(given, *rest)
    try:
        session.push_image(image, still=True)
        session.push_image(picture(30, 30, 1))
        pending = []
        for _ in range(4):
            runtime.tick()
            pending.append(session.stats.pending_rows)
    finally:
        del family.tick
    assert pending == [161 - 61, 161 - 122, 0, 0]
    assert [len(p) for p in fed] == [61, 61, 39, 0]
    rows = np.concatenate([p.numpy() for p in fed[:3]])
    assert np.array_equal(rows[:160], to_patches(image, 1_000))
    assert np.array_equal(rows[160:], to_patches(picture(30, 30, 1), 1_000))
    assert all(np.isfinite(o.audio).all() for o in tools.drain(session))
