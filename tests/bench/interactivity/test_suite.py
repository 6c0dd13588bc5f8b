"""Answers kept line by line, shared out among processes, made into rows, charts and a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from microturn.bench.interactivity import charts, crew, suite, tuning
from microturn.bench.interactivity.crew import Work
from microturn.bench.interactivity.harness import Rules
from microturn.bench.interactivity.ledger import Answer, Ledger
from microturn.bench.interactivity.page import Page, Played
from microturn.bench.interactivity.players import Job, Player
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Expected, Scene
from microturn.bench.interactivity.speech import Audio, Word

pytest.importorskip("espeakng_loader")

PLAN = suite.Plan(("idle", "latency"), 2, conditions=("clean", "noise"))


def answer(job: Job, right: float = 1.0, provider: str = "microturn") -> Answer:
    words = (Word("one", 1.0, 1.35),)
    marks = {"score": right, "latency_s_median": (0.25, 0.5)}
    return Answer(provider, job, marks, words, {**marks, "score": 0.0}, words)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first, second, *_ = PLAN.jobs()
    ledger = Ledger(path)
    ledger.settings("microturn", {"weights": "abc"})
    ledger.add(answer(first))
    ledger.add(answer(second))
    path.write_text(path.read_text()[:-20])  # killed while it wrote
    again = Ledger(path)
    assert list(again.answers) == [("microturn", first)]
    kept = again.answers["microturn", first]
    assert kept.said == answer(first).said and kept.heard == kept.said
    assert tuple(kept.text["latency_s_median"]) == (0.25, 0.5)  # type: ignore[arg-type]
    again.settings("microturn", {"weights": "abc"})
    again.add(answer(second))
    assert len(Ledger(path).answers) == 2
    with pytest.raises(ValueError, match="weights 'abc', now 'xyz'"):
        again.settings("microturn", {"weights": "xyz"})
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is no answer"):
        Ledger(path)


def test_processes_share_the_scenes_out_and_say_what_went_wrong() -> None:
    jobs = list(PLAN.jobs())
    work = Work(Player("silent"), audio=False)
    alone, shared = (sorted(work.shared(jobs, n), key=lambda a: a.job) for n in (1, 2))
    assert alone == shared and len(alone) == len(jobs)
    with pytest.raises(RuntimeError, match="unknown task 'sing'"):
        list(work.shared([Job("sing", "test", 0, "clean")] * 2, 2))
    with pytest.raises(ValueError, match="unknown provider 'me'"):
        Player("me")


def test_text_and_sound_are_scored_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def play(player: Player, jobs: Iterable[Job]) -> Iterator[tuple[Job, Scene, Reply]]:
        for job in jobs:
            scene = job.scene()
            yield job, scene, Reply((), np.zeros(len(scene.audio), np.float32))

    def ear(audio: Audio) -> tuple[Word, ...]:
        return (Word("ghost<", 1.0, 1.2),)

    monkeypatch.setattr(Player, "play", play)
    monkeypatch.setattr(crew, "_ear", lambda: ear)
    plan = suite.Plan(("idle",), 3)
    work = Work(Player("microturn"), listen=tmp_path)
    rows = suite.rows(plan, work.answers(plan.jobs()), {"microturn": "a note"})
    by_text, by_audio = rows
    assert by_text["score"] == 100 and by_audio["score"] == 0 and by_text["count"] == 3
    assert by_audio["case"] == "task=idle,split=test,condition=clean,scored=audio"
    assert by_audio["marks"]["text_minus_audio"][0] == 1
    assert by_text["note"] == "a note; synthetic counterpart: ratios, not values, compare"
    html = Page(tmp_path, per_task=2).write().read_text()
    assert html.count("<audio") == 3 and "ghost&lt;" in html and suite.WORDS in html
    assert len(list(tmp_path.glob("*.flac"))) == 3


def test_a_page_keeps_the_first_scenes_of_each_task_whoever_plays_them(tmp_path: Path) -> None:
    scene = Job("idle", "test", 0, "clean").scene()
    for number in (2, 0, 1):
        job = Job("idle", "test", number, "clean")
        Page(tmp_path, per_task=2).add("silent", job, Played(scene, Reply(()), None))
    assert sorted(p.name for p in tmp_path.glob("*.flac")) == [
        "idle-clean-silent-0.flac",
        "idle-clean-silent-1.flac",
    ]
    assert Page(tmp_path).write().read_text().count("<h2") == 1


def test_rows_say_what_a_condition_costs_scene_by_scene(tmp_path: Path) -> None:
    answers = [answer(job, float(job.condition == "clean")) for job in PLAN.jobs()]
    elsewhere = answer(Job("idle", "validation", 0, "clean"))
    rows = suite.rows(PLAN, [*reversed(answers), elsewhere], {"microturn": ""})
    assert rows == suite.rows(PLAN, answers, {"microturn": ""}), "whatever order they came in"
    assert len(rows) == 2 * 2 * 2
    noisy = next(r for r in rows if "condition=noise,scored=text" in r["case"])
    assert noisy["score"] == 0 and noisy["marks"]["lost"][0] == 1
    assert noisy["marks"]["latency_s_median"][0] == 0.375
    clean = next(r for r in rows if "condition=clean,scored=text" in r["case"])
    assert "lost" not in clean["marks"] and clean["count"] == 2

    meta = {"device": "a machine", "git": "abc", "date": "2026-01-01T00:00:00"}
    named = [replace(one, job=one.job._replace(task="latency")) for one in answers]
    drawn = charts.draw({"rows": rows, "meta": meta}, named, tmp_path)
    assert [path.name for path in drawn] == ["scores.png", "conditions.png", "latency.png"]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    json.dumps(rows)


def test_tuning_takes_the_promptest_of_the_best() -> None:
    facts = {"ends": (1.0,), "idle": ()}
    audio = np.zeros(48_000, np.float32)
    question = Scene("q", "latency", "validation", audio, None, (Expected("two", 1.2),), (), facts)

    def converse(asked: Sequence[tuple[Scene, Rules]]) -> list[Reply]:
        right = [rules.silence_ms >= 400 and rules.aggressiveness == 2 for _, rules in asked]
        return [Reply((Word("two" if ok else "three", 1.5, 1.8),)) for ok in right]

    tuned = tuning.tune(converse, [question])
    assert (tuned.rules.silence_ms, tuned.rules.aggressiveness) == (400, 2)
    assert tuned.marks["score"].mean == 1 and tuned.fair
    wrong = tuning.tune(lambda asked: [Reply(())] * len(asked), [question])
    assert not wrong.fair and wrong.rules.silence_ms == min(tuning.SILENCES_MS)
