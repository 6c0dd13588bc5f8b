"""Random lives of several sessions: nothing is lost, nothing leaks, and everything replays."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from microturn.runtime import Runtime, RuntimeFull, Sampling, Session
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.engine import RowInput
from microturn.runtime.plan import RowPlan, TickPlan


class Life:
    """One session, what was pushed to it, and the lines that were committed for it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.pushed: list[np.ndarray] = []
        self.told: list[int] = []
        self.rows: list[tuple[RowPlan, RowInput]] = []
        self.outputs: list[Any] = []


def test_random_lives_keep_the_promises(
    make_runtime: Callable[..., Runtime], make_family: Any, tools: SimpleNamespace
) -> None:
    class Lives(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.family = make_family()
            self.runtime = make_runtime(
                model=self.family, max_sessions=3, input_queue_ms=400, output_queue_ticks=100
            )
            self.runtime._loop._record = self.record
            self.lives: list[Life] = []
            self.ended: list[Life] = []
            self.samples = 0

        def record(self, plan: TickPlan, inputs: Any, outputs: Any) -> None:
            for life in self.lives + self.ended:
                for row in plan.rows:
                    if row.session_id == life.session.id:
                        life.rows.append((row, inputs[row.session_id]))

        def some(self, which: int) -> Life:
            return self.lives[which % len(self.lives)]

        @rule(words=st.integers(0, 40))
        def open(self, words: int) -> None:
            full = len(self.lives) == 3
            try:
                session = self.runtime.open("a b " * (words // 2), seed=len(self.ended))
            except RuntimeFull:
                assert full
                return
            assert not full
            life = Life(session)
            life.told += self.family.tokenizer.encode("a b " * (words // 2))
            self.lives.append(life)

        @precondition(lambda self: self.lives)
        @rule(which=st.integers(0, 2), size=st.integers(0, 4_000))
        def push(self, which: int, size: int) -> None:
            life = self.some(which)
            audio = np.arange(self.samples + 1, self.samples + 1 + size, dtype=np.float32) * 1e-6
            self.samples += size
            life.session.push_audio(audio, 16_000)
            life.pushed.append(audio)

        @precondition(lambda self: self.lives)
        @rule(which=st.integers(0, 2), words=st.integers(1, 20))
        def tell(self, which: int, words: int) -> None:
            life = self.some(which)
            life.session.append_context("c " * words)
            life.told += self.family.tokenizer.encode("c " * words)

        @precondition(lambda self: self.lives)
        @rule(which=st.integers(0, 2), what=st.sampled_from(["pause", "resume", "warm", "cold"]))
        def switch(self, which: int, what: str) -> None:
            session = self.some(which).session
            if what in ("pause", "resume"):
                getattr(session, what)()
            else:
                session.update(sampling=Sampling(text_temperature=float(what == "warm")))

        @precondition(lambda self: self.lives)
        @rule(which=st.integers(0, 2))
        def close(self, which: int) -> None:
            life = self.some(which)
            self.lives.remove(life)
            self.ended.append(life)
            self.check_conserved(life)
            life.session.close()

        @rule(fails=st.lists(st.just(True), max_size=2))
        def tick(self, fails: list[bool]) -> None:
            self.family.raise_in = list(fails)
            for _ in range(3):
                self.runtime.tick()
            self.family.raise_in = []

        def check_conserved(self, life: Life) -> None:
            stats = life.session.stats
            heard = sum(len(given.audio) for _, given in life.rows)
            pushed = sum(map(len, life.pushed))
            silence, dropped = stats.inserted_silence_ms * 16, stats.dropped_ms * 16
            assert pushed == heard - silence + dropped + stats.waiting_audio_ms * 16
            known = [i for _, given in life.rows for i in given.context_ids]
            assert known == life.told[: len(known)]
            assert len(life.told) == len(known) + stats.pending_rows
            in_order = np.concatenate([g.audio for _, g in life.rows] or [np.empty(0)])
            assert (np.diff(in_order[in_order > 0]) > 0).all()

        def teardown(self) -> None:
            for life in self.lives:
                self.check_conserved(life)
            for life in self.lives + self.ended:
                life.outputs = tools.drain(life.session)
                assert [o.start_ms for o in life.outputs] == [
                    100 * k for k in range(len(life.outputs))
                ]
                self.check_alone(life)
            self.runtime.close()

        def check_alone(self, life: Life) -> None:
            """The committed rows alone, in a slot of their own, give the same bits."""
            engine = CpuEngine(self.family, 1)
            made = []
            for row, given in life.rows:
                one = RowPlan(**{**row.__dict__, "slot": 0})
                out = engine.step(TickPlan(0, 0, 1, 1, (one,)), {row.session_id: given})
                if row.exec:
                    made.append(out.rows[row.session_id])
            assert [m.audio.tobytes() for m in made] == [o.audio.tobytes() for o in life.outputs]
            assert [m.codes.tobytes() for m in made] == [o.codes.tobytes() for o in life.outputs]

    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
