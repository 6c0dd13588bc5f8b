"""A session at its owner's hands: queues and policies, warming and pausing, errors, waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.runtime import (
    AudioError,
    CloseCode,
    ContextError,
    ImageError,
    InputError,
    QueueFull,
    RealClock,
    Runtime,
    RuntimeClosed,
    RuntimeFull,
    Sampling,
    SessionClosed,
)

MakeRuntime = Callable[..., Runtime]
TICK = 1_600


def test_an_output_says_when_what_and_how(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runtime = make_runtime()
    session = runtime.open(seed=3)
    for k in range(12):
        session.push_audio(tools.noise(TICK, k), 16_000)
        runtime.tick()
    outputs = tools.drain(session)
    assert [(o.tick, o.start_ms, o.end_ms) for o in outputs] == [
        (k, 100 * k, 100 * k + 100) for k in range(12)
    ]
    for output in outputs:
        assert output.session_id == session.id
        assert output.audio.shape == (2_400,) and output.audio.dtype == np.float32
        assert output.sample_rate == 24_000 and output.codes.shape == (2, 2)
        assert output.untrained and not output.late and output.slack_ms == 100.0
        assert output.step_ms > 0
        assert output.text == "".join(e.piece for e in output.events)
        assert all(e.ms in (output.start_ms, output.start_ms + 50.0) for e in output.events)
        assert all(e.token_id != 0 for e in output.events)
        assert output.delegation == any(e.token_id == 39 for e in output.events)
        assert output.words == tuple(e for e in output.events if e.token_id not in (38, 39))
    assert len({o.text for o in outputs}) > 6
    stats = session.stats
    assert (stats.ticks, stats.late_ticks, stats.inserted_silence_ms) == (12, 0, 0.0)


def test_a_full_input_queue_drops_the_oldest_and_marks_the_next_output(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    audio = tools.noise(5 * TICK)
    runtime = make_runtime(input_queue_ms=300)
    session = runtime.open(seed=1)
    for part in np.split(audio, 5):
        session.push_audio(part, 16_000)
    assert session.stats.dropped_ms == 200.0
    for _ in range(3):
        runtime.tick()
    outputs = tools.drain(session)
    assert [o.dropped_ms for o in outputs] == [200.0, 0.0, 0.0]
    other = runtime.open(seed=1)
    other.push_audio(audio[2 * TICK :], 16_000)
    for _ in range(3):
        runtime.tick()
    assert tools.bits(tools.drain(other)) == tools.bits(outputs)


def test_a_full_input_queue_may_close_the_session_instead(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(input_queue_ms=200, input_overflow="close")
    session, other = runtime.open(), runtime.open()
    session.push_audio(np.zeros(2 * TICK, np.int16), 16_000)
    with pytest.raises(SessionClosed, match="input_overflow: more than 200 ms"):
        session.push_audio(np.zeros(1, np.int16), 16_000)
    assert session.closed_reason is not None
    assert session.closed_reason.code is CloseCode.INPUT_OVERFLOW
    assert other.state == "warming" and list(session) == []


def test_a_slow_reader_ends_its_own_session(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runtime = make_runtime(output_queue_ticks=3)
    slow, other = runtime.open(), runtime.open()
    for _ in range(5):
        runtime.tick()
        tools.drain(other)
    assert slow.closed_reason is not None and slow.closed_reason.code is CloseCode.SLOW_READER
    assert [o.tick for o in slow] == [0, 1, 2]
    assert other.state == "live"


def test_or_loses_the_oldest_outputs_and_the_next_one_says_so(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(output_queue_ticks=3, output_overflow="drop_oldest")
    slow = runtime.open()
    for _ in range(5):
        runtime.tick()
    assert slow.stats.dropped_outputs == 2
    read = [slow.poll() for _ in range(3)]
    assert [(o.tick, o.dropped_outputs) for o in read if o] == [(2, 2), (3, 0), (4, 0)]
    assert slow.poll() is None and slow.state == "live"


def test_long_instructions_warm_up_first_and_pending_rows_count_down(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runtime = make_runtime()
    session = runtime.open("word " * 50, seed=1)
    states = []
    for k in range(6):
        session.push_audio(tools.noise(TICK, k), 16_000)
        states.append(session.state)
        runtime.tick()
    outputs = tools.drain(session)
    assert states == ["warming"] * 4 + ["live"] * 2
    assert [(o.tick, o.start_ms, o.pending_rows) for o in outputs] == [
        (3, 0, 0),
        (4, 100, 0),
        (5, 200, 0),
    ]
    assert [o.dropped_ms for o in outputs] == [200.0, 0.0, 0.0]
    session.append_context("more " * 30)
    for _ in range(3):
        runtime.tick()
    assert [o.pending_rows for o in tools.drain(session)] == [17, 4, 0]


def test_speak_puts_its_ids_before_the_text(make_runtime: MakeRuntime, make_family: Any) -> None:
    family = make_family()
    runtime = make_runtime(model=family)
    session = runtime.open("a b")
    session.append_context("c d", speak=True)
    session.append_context("e")
    runtime.tick()
    ids = family.fed[-1][0].context_ids.tolist()
    plain = family.tokenizer.encode("a b c d e")
    assert ids == [*plain[:2], 38, *plain[2:]]
    family.speak_ids = ()
    with pytest.raises(ContextError, match="no way to ask for speech"):
        runtime.open().append_context("c", speak=True)


def test_images_wait_for_a_model_that_sees(
    make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    blind, seeing = make_runtime(), make_runtime(model=make_family(sees=True))
    results = []
    for runtime in (blind, seeing):
        session = runtime.open(seed=1)
        session.push_image(image)
        session.push_image(image[::-1].copy())
        assert session.stats.replaced_images == 1
        runtime.tick()
        results.append(session.poll())
    assert [r.pending_rows for r in results if r] == [9, 0]
    assert tools.bits(results[:1]) != tools.bits(results[1:])
    fed = seeing.family.fed[-1][0].patches  # type: ignore[attr-defined]
    assert fed.shape == (9, 2, 40, 40, 3)
    assert (fed[0, 0].numpy() == image[:40, :40]).all(), "the frame before, although replaced"
    assert (fed[0, 1].numpy() == image[::-1][:40, :40]).all()


def test_pausing_stops_the_session_and_nothing_else(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    def run(pause: bool) -> list[Any]:
        runtime = make_runtime()
        session = runtime.open(seed=1)
        for k in range(3):
            session.push_audio(tools.noise(TICK, k), 16_000)
            runtime.tick()
        if pause:
            session.pause()
            assert session.state == "paused"
            for k in range(4):
                session.push_audio(tools.noise(TICK, 10 + k), 16_000)
                runtime.tick()
            session.push_audio(tools.noise(TICK, 3), 16_000)
            runtime.tick()
            session.resume()
            assert session.state == "live"
            assert session.stats.dropped_ms == 400.0
        else:
            session.push_audio(tools.noise(TICK, 3), 16_000)
        runtime.tick()
        outputs = tools.drain(session)
        assert [o.start_ms for o in outputs] == [0, 100, 200, 300]
        return tools.bits(outputs)  # type: ignore[no-any-return]

    assert run(True) == run(False)


def test_sampling_changes_from_the_next_tick_on(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runtime = make_runtime()
    plain, changed = runtime.open(seed=1), runtime.open(seed=1)
    runtime.tick()
    changed.update(sampling=Sampling(text_temperature=0.1))
    runtime.tick()
    a, b = tools.drain(plain), tools.drain(changed)
    assert tools.bits(a[:1]) == tools.bits(b[:1])
    assert a[1].events != b[1].events
    with pytest.raises(InputError, match="must be a Sampling, got float"):
        changed.update(sampling=0.1)  # type: ignore[arg-type]


def test_refused_input_takes_nothing_away_from_what_was_accepted(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runtime = make_runtime(input_queue_ms=300, context_queue_rows=10, image_queue_rows=8)
    wanted, session = runtime.open(seed=1), runtime.open(seed=1)
    for target in (wanted, session):
        target.push_audio(tools.noise(2 * TICK), 16_000)
        target.append_context("a b c")
    refusals: list[tuple[type[Exception], str, Callable[[], None]]] = [
        (AudioError, "NaN", lambda: session.push_audio(np.full(9, np.nan), 16_000)),
        (AudioError, "got -1", lambda: session.push_audio(np.zeros(9), -1)),
        (AudioError, "400 ms in one push", lambda: session.push_audio(np.zeros(3_200), 8_000)),
        (AudioError, "complex", lambda: session.push_audio(np.zeros(9, complex), 8_000)),
        (ContextError, "string, got int", lambda: session.append_context(5)),  # type: ignore
        (QueueFull, "9 context tokens do not fit", lambda: session.append_context("a " * 9)),
        (
            ImageError,
            "9 patches, the queue holds 8",
            lambda: session.push_image(np.zeros((99, 99, 3), np.uint8)),
        ),
    ]
    for kind, says, refused in refusals:
        with pytest.raises(kind, match=says):
            refused()
    for _ in range(3):
        runtime.tick()
    assert tools.bits(tools.drain(session)) == tools.bits(tools.drain(wanted))


def test_a_closed_session_says_so_and_its_outputs_stay_readable(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime(max_sessions=1)
    with runtime.open() as session:
        runtime.tick()
        runtime.tick()
        with pytest.raises(RuntimeFull):
            runtime.open()
    assert session.state == "closed"
    session.close()
    session.close(drain=True)
    for use in (
        lambda: session.push_audio(np.zeros(9), 16_000),
        lambda: session.push_image(np.zeros((4, 4, 3), np.uint8)),
        lambda: session.append_context("a"),
        lambda: session.update(sampling=Sampling()),
        session.pause,
        session.resume,
    ):
        with pytest.raises(SessionClosed, match="closed by its owner"):
            use()
    assert [o.tick for o in session] == [0, 1]
    assert runtime.open().id != session.id


def test_draining_hears_all_that_was_accepted(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runtime = make_runtime()
    session = runtime.open("word " * 40)
    session.push_audio(tools.noise(44_100 // 4), 44_100)
    session.pause()
    session.close(drain=True)
    with pytest.raises(SessionClosed, match="once its input is heard"):
        session.append_context("late")
    for _ in range(8):
        runtime.tick()
    outputs = list(session)
    heard = sum(100 - o.inserted_silence_ms for o in outputs) + session.stats.dropped_ms
    assert heard == 250.0
    assert outputs[-1].pending_rows == 0


@pytest.mark.parametrize("policy", ["drop_oldest", "close"])
def test_draining_a_full_queue_loses_nothing(
    make_runtime: MakeRuntime, tools: SimpleNamespace, policy: str
) -> None:
    runtime = make_runtime(input_queue_ms=200, input_overflow=policy)
    session = runtime.open()
    session.push_audio(tools.noise(9_600), 48_000)
    session.push_audio(tools.noise(480), 48_000)
    session.close(drain=True)
    for _ in range(5):
        runtime.tick()
    heard = sum(100 - o.inserted_silence_ms for o in session)
    assert heard == pytest.approx(10_080 / 48, abs=0.1)
    assert session.stats.dropped_ms == 0
    assert session.closed_reason is not None
    assert session.closed_reason.code is CloseCode.CLOSED


def test_opening_checks_what_it_is_given(make_runtime: MakeRuntime, make_family: Any) -> None:
    runtime = make_runtime(context_queue_rows=5)
    for kind, says, arguments in (
        (InputError, "seed must be", {"seed": -1}),
        (InputError, "seed must be", {"seed": 1.5}),
        (InputError, "own voice only", {"voice": "alto"}),
        (InputError, "must be a Sampling", {"sampling": {}}),
        (QueueFull, "6 tokens of instructions", {"instructions": "a " * 6}),
        (ContextError, "string, got bytes", {"instructions": b"a"}),
    ):
        with pytest.raises(kind, match=says):
            runtime.open(**arguments)  # type: ignore[arg-type]
    assert runtime.sessions == ()
    family = make_family()
    family.tokenizer = None
    with pytest.raises(ContextError, match="without a tokenizer"):
        make_runtime(model=family).open("hello")


def test_sessions_without_a_seed_get_different_ones_that_come_again(
    make_runtime: MakeRuntime,
) -> None:
    first, second = make_runtime(seed=9), make_runtime(seed=9)
    seeds = [[runtime.open().seed for _ in range(3)] for runtime in (first, second)]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 3


def test_outputs_can_be_awaited(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()

    async def main() -> list[int]:
        session, other = runtime.open(), runtime.open()
        asyncio.get_running_loop().run_in_executor(None, tick_and_close)
        both = await asyncio.gather(read(session), read(other))
        assert both[0] == both[1]
        return both[0]

    def tick_and_close() -> None:
        for _ in range(4):
            time.sleep(0.005)
            runtime.tick()
        runtime.close()

    async def read(session: Any) -> list[int]:
        return [output.tick async for output in session]

    assert asyncio.run(asyncio.wait_for(main(), 10)) == [0, 1, 2, 3]


def test_waiting_for_an_output_can_be_cancelled_or_time_out(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    session = runtime.open()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(aiter(session)), 0.01)

    asyncio.run(main())
    assert session.read(timeout=0.01) is None
    runtime.tick()
    output = session.read(timeout=5)
    assert output is not None and output.tick == 0


def test_threads_may_hammer_one_session_while_the_clock_runs(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    """Every sample pushed is heard, dropped, or still waiting, exactly."""
    runtime = make_runtime(clock=RealClock(), input_queue_ms=300, output_queue_ticks=1_000)
    session = runtime.open()
    errors: list[BaseException] = []

    def pusher(seed: int) -> None:
        try:
            for k in range(60):
                session.push_audio(tools.noise(173, seed), 16_000)
                if k % 20 == 0:
                    session.append_context("a b")
                    session.pause()
                    session.resume()
                assert session.stats.ticks >= 0 and session.state
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=pusher, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close(drain=True)
    outputs = list(session)
    assert not errors
    stats = session.stats
    heard = sum(o.end_ms - o.start_ms for o in outputs) - stats.inserted_silence_ms
    assert heard + stats.dropped_ms == pytest.approx(4 * 60 * 173 / 16)
    assert [o.start_ms for o in outputs] == [100 * k for k in range(len(outputs))]
    assert sum(o.dropped_ms for o in outputs) == pytest.approx(stats.dropped_ms)


def test_a_closed_runtime_ends_its_sessions_and_refuses_more(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    session = runtime.open()
    runtime.tick()
    with runtime:
        assert runtime.ready
    assert not runtime.ready
    assert session.closed_reason is not None
    assert session.closed_reason.code is CloseCode.RUNTIME_CLOSED
    assert len(list(session)) == 1
    for use in (runtime.open, runtime.tick, runtime.start):
        with pytest.raises(RuntimeClosed):
            use()
