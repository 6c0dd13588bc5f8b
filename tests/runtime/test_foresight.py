"""What a runtime foresees, on an engine whose steps take what they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from microturn.bench.chaos.echo import EchoEngine, EchoFamily
from microturn.model.cost import OpCall, TickWork
from microturn.runtime import InputError, Runtime, RuntimeFull, Session, Video, VirtualClock
from microturn.runtime.admission import AGES, Load
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.foresight import amounts_of, doubling, session_bytes

MS = 1_000_000


class AgingEngine(EchoEngine):
    """Old slots cost 3 ms more each."""

    def __init__(self, num_slots: int, clock: VirtualClock, takes: Callable[[int], int]) -> None:
        super().__init__(num_slots, clock, takes)
        self.old: set[int] = set()

    def step(self, plan: Any, inputs: Any) -> Any:
        self.old -= {row.slot for row in plan.rows if row.reset}
        self._clock.advance(3 * MS * sum(row.slot in self.old for row in plan.rows))
        return super().step(plan, inputs)

    def age_slot(self, slot: int) -> None:
        self.old.add(slot)


@pytest.fixture
def make() -> Iterator[Callable[..., Runtime]]:
    made: list[Runtime] = []

    def runtime(
        kind: Any = EchoEngine,
        slots: int = 16,
        base: int = 20,
        family: Any = None,
        **config: Any,
    ) -> Runtime:
        clock = VirtualClock()
        engine = kind(slots, clock, lambda rows: (base + 9 * rows) * MS)
        config = {"admission": "predict", "max_sessions": slots, **config}
        model: Any = family if family is not None else EchoFamily()
        made.append(Runtime(model=model, engine=engine, clock=clock, **config))
        return made[-1]

    yield runtime
    for one in made:
        one.close()


def fill(runtime: Runtime) -> tuple[list[Session], RuntimeFull]:
    """Opens until refused."""
    opened: list[Session] = []
    while True:
        try:
            opened.append(runtime.open())
        except RuntimeFull as refused:
            return opened, refused


def test_warm_up_measures_and_admission_keeps_to_it(make: Callable[..., Runtime]) -> None:
    """p99 is taken to be a quarter above p50 until ticks were seen: 1.25 (20 + 9 n) + 5 <= 100."""
    runtime = make()
    summary = runtime.summary()
    assert summary["predicted_sessions"] == 6
    for n, said in summary["predicted_ms"].items():
        assert said["p50"] == pytest.approx(20 + 9 * int(n), rel=0.02)
        assert said["p99"] == pytest.approx(1.25 * said["p50"], rel=1e-3)
    opened, refused = fill(runtime)
    assert len(opened) == 6 and refused.reason == "time" and refused.retry_after_ms == 1000
    assert "99 of 100 ticks with 7 sessions" in str(refused)
    assert runtime.summary()["sessions_refused_for"] == {"time": 1}


def test_ticks_that_were_seen_make_room_that_the_guess_did_not(
    make: Callable[..., Runtime],
) -> None:
    runtime = make()
    opened, _ = fill(runtime)
    for _ in range(500):
        runtime.tick()
        for session in opened:
            session.poll()
    more, refused = fill(runtime)
    assert len(opened) + len(more) == 8 and refused.reason == "time"
    assert runtime.summary()["misses"] == 0


def test_a_session_that_leaves_makes_room_and_the_hint_says_when(
    make: Callable[..., Runtime],
) -> None:
    runtime = make()
    opened, _ = fill(runtime)
    opened[0].push_audio(np.zeros(100, np.float32), 1_000)
    opened[0].close(drain=True)
    _, refused = fill(runtime)
    assert refused.retry_after_ms == 300
    for _ in range(3):
        runtime.tick()
    again, _ = fill(runtime)
    assert len(again) == 1


def test_context_to_read_and_others_reading_it_are_foreseen(make: Callable[..., Runtime]) -> None:
    """The echo's steps cost by session, not by row: the probe that reads says so."""
    runtime = make()
    loads = runtime.foresight.predictor
    reading, plain = loads.p50(Load(1, 8, 0)), loads.p50(Load(1, 2, 0))
    assert reading == pytest.approx(plain, rel=0.05)


class BlindFamily(EchoFamily):
    sees = False


class SeeingEngine(EchoEngine):
    """Patches cost 4 ms each."""

    def step(self, plan: Any, inputs: Any) -> Any:
        for row in plan.rows:
            assert len(inputs[row.session_id].patches) == row.n_patches
            self._clock.advance(4 * MS * row.n_patches)
        return super().step(plan, inputs)


def test_video_that_sessions_said_they_would_bring_is_foreseen(
    make: Callable[..., Runtime],
) -> None:
    """1.25 (20 + 9 n + 4 p) + 5 <= 100 for p patches a tick of all sessions together."""
    plain, seeing = (make(SeeingEngine) for _ in range(2))
    assert len(fill(plain)[0]) == 6
    three = Video(width=160, height=120, fps=2)  # 15 patches a frame
    seeing.open(video=three)
    opened, refused = fill(seeing)
    assert len(opened) == 3 and refused.reason == "time", "(76 - 20 - 4 * 3) / 9 < 5"
    opened[0].close()
    with pytest.raises(RuntimeFull, match="99 of 100 ticks with 4 sessions"):
        seeing.open(video=three)
    seeing.open()
    load = seeing.foresight.admission.load(3, images=(5, 100))
    assert load == Load(3, 6 + 5 + 6, patches=5 + 6), "no more than a tick takes of each"


def test_video_said_to_come_is_checked(make: Callable[..., Runtime]) -> None:
    runtime = make()
    wrong: Any = (160, 120, 3)
    with pytest.raises(InputError, match="video must be a Video, got tuple"):
        runtime.open(video=wrong)
    for wrong in ((0, 120, 3), (160, 120.0, 3), (160, 120, 0), (160, True, 3)):
        with pytest.raises(InputError, match=r"must be a .* above 0, got"):
            Video(*wrong)
    with pytest.raises(InputError, match="has no vision tower"):
        make(family=BlindFamily()).open(video=Video(160, 120, 3))
    assert [Video(160, 120, fps).patches_a_tick(100) for fps in (10, 4, 0.1)] == [15, 6, 1]


def test_old_sessions_cost_what_they_will_before_anyone_is_old(
    make: Callable[..., Runtime],
) -> None:
    runtime = make(AgingEngine)
    predictor = runtime.foresight.predictor
    young, old = predictor.p50(Load(4, 8, 0)), predictor.p50(Load(4, 8, AGES))
    assert young == pytest.approx(56 * MS, rel=0.05)
    assert old == pytest.approx(68 * MS, rel=0.05)
    opened, _ = fill(runtime)
    assert len(opened) == 4, "1.25 (20 + 12 n) + 5 <= 100"
    assert runtime.foresight.age(range(4))
    assert runtime.foresight._ages.load(runtime.tick()).age == 0, "a first tick resets its slot"


def test_measuring_ends_where_it_is_late_anyway(make: Callable[..., Runtime]) -> None:
    runtime = make(slots=64, base=95)
    assert sorted(runtime.foresight.predictor._probes) == [1]
    assert runtime.summary()["predicted_sessions"] == 0
    with pytest.raises(RuntimeFull, match="half of the ticks with 1 sessions"):
        runtime.open()


@pytest.mark.parametrize("config", [{"admission": "auto"}, {"admission": "slots"}])
def test_by_hand_nobody_waits_and_nothing_is_measured(
    config: dict[str, str], make: Callable[..., Runtime]
) -> None:
    runtime = make(base=500, **config)
    assert "predicted_sessions" not in runtime.summary()
    opened, refused = fill(runtime)
    assert len(opened) == 16 and refused.reason == "slots"


def test_an_engine_of_a_cpu_can_pretend_to_be_old(make_family: Any) -> None:
    family = make_family()
    clock = VirtualClock()
    engine = CpuEngine(family, 2)
    with Runtime(model=family, engine=engine, clock=clock, admission="predict") as runtime:
        assert {s.load.age for s in runtime.foresight.predictor._probes[1]} == {0, AGES}
        engine.age_slot(1)
        assert engine.arenas.committed("rows", 1) == 1 << 20
        assert not engine.arenas.view("ring").data[1].any()
        session = runtime.open(seed=1)
        runtime.tick()
        assert session.poll() is not None


def test_amounts_rise_and_tell_rows_keys_and_sessions_apart() -> None:
    class Costed:
        window_rows = 160

        def calls(self, work: TickWork) -> Iterator[OpCall]:
            for part, op, size in (
                ("append", "linear", sum(work.counts)),
                ("append", "streaming_attention", sum(work.starts)),
                ("heads.0", "linear", work.speaking),
            ):
                yield OpCall(part, op, Case(size))

    class Case:
        def __init__(self, size: int) -> None:
            self.flops = 50 * size

        def bytes(self, itemsize: int, streamed: int | None = None) -> int:
            return itemsize * self.size

        @property
        def size(self) -> int:
            return self.flops // 50

    amounts = amounts_of(Costed(), "cpu")  # type: ignore[arg-type]
    assert amounts(Load(2, 10, AGES)) == (1.0, 14.0 * 10, 14.0 * 320, 14.0 * 2)
    assert amounts(Load(2, 10, 1))[2] == 14.0 * 20
    assert amounts_of(EchoFamily(), "cpu")(Load(2, 10, 4)) == (1.0, 2, 10, 8, 0)  # type: ignore[arg-type]


def test_the_queues_of_a_session_are_counted(make: Callable[..., Runtime]) -> None:
    config, shape = make().config, EchoFamily.shape
    blind = session_bytes(config, shape, sees=False)
    assert blind == 4 * 500 + 50 * 4 * 100 + 8 * 4096
    assert session_bytes(config, shape, sees=True) - blind == 2048 * 2 * 2 * 40 * 40 * 3
    assert list(doubling(1)) == [1] and list(doubling(6)) == [1, 2, 4, 6]
