"""The same answers whatever is played beside them, by the real runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from microturn.bench.interactivity import duplex, harness, lanes, quick
from microturn.bench.interactivity.lanes import Case
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import SAMPLE_RATE
from microturn.model.interaction.load import load_family
from microturn.runtime import Runtime, VirtualClock


@pytest.fixture(scope="module")
def family() -> Any:
    return load_family("interaction-tiny", seed=1, trained=False)


def scene(number: int, seconds: float) -> Scene:
    rng = np.random.default_rng(number)
    audio = (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)
    return Scene(f"scene-{number}", "idle", "test", audio, None, (), (), {"spoken_seconds": 1.0})


SCENES = [scene(n, seconds) for n, seconds in enumerate((0.5, 0.8, 0.3))]


def play(family: Any, slots: int, temperature: float = 0.0) -> list[Reply]:
    with Runtime(model=family, max_sessions=slots, clock=VirtualClock()) as runtime:
        cases = (Case(s.name, s, duplex.live(s, family.shape)) for s in SCENES)
        drawn = lanes.sampling(temperature)
        found = {case.key: reply for case, reply in lanes.play(runtime, cases, drawn)}
    return [found[s.name] for s in SCENES]


def test_answers_do_not_depend_on_the_lanes_beside_them(family: Any) -> None:
    alone, beside = play(family, 1, 1.0), play(family, 2, 1.0)
    for one, other in zip(alone, beside, strict=True):
        assert one.words == other.words and np.array_equal(one.audio, other.audio)
    assert len({reply.words for reply in alone}) == len(SCENES), "and they are not all the same"


def test_what_is_written_does_not_depend_on_the_voice(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "make_scene", lambda task, split, n, **_: SCENES[n])
    read: list[Reply] = []

    def kept(scene: Scene, reply: Reply) -> dict[str, float]:
        read.append(reply)
        return {"score": 1.0}

    monkeypatch.setattr(quick, "score", kept)
    family.model.train()
    found = quick.evaluate_text(family.model, family.tokenizer, "idle", n=len(SCENES))
    assert family.model.training and found["score"].scenes == len(SCENES)
    family.model.eval()
    assert {r.words for r in read} == {r.words for r in play(family, 3)}
    assert all(reply.audio is None for reply in read) and any(reply.words for reply in read)
    quick.evaluate_text(
        family.model, family.tokenizer, "idle", n=1, rules=harness.Rules(), temperature=0.5
    )
