"""Every rule: an ideal reply has full marks, silence the published ones, each fault costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from microturn.bench.interactivity.intervals import estimate, median, rate
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.scoring import RULES, gather, score
from microturn.bench.interactivity.speech import SAMPLE_RATE, Word
from microturn.bench.interactivity.tasks import TASKS, make_scene
from microturn.bench.interactivity.tasks.repcount import counted
from microturn.bench.interactivity.vocabulary import NUMBERS

pytest.importorskip("espeakng_loader")


def said(*words: tuple[str, float]) -> Reply:
    return Reply(tuple(Word(text, at, at + 0.3) for text, at in words))


def ideal(scene: Scene) -> Reply:
    """What is expected, when it is; from an interruption on nothing."""
    return said(*((want.word, want.at) for want in scene.expected))


@pytest.mark.parametrize("task", TASKS)
def test_an_ideal_reply_has_full_marks_and_silence_has_not(task: str) -> None:
    assert set(RULES) == set(TASKS)
    for number in range(3):
        scene = make_scene(task, "test", number)
        best = score(scene, ideal(scene))["score"]
        if task == "charades" or task == "proactive":  # a watcher's reaction at both ends
            assert 0.75 < best < 1
        else:
            assert best == 1.0
        silent = score(scene, said())["score"]
        assert silent == {"proactive": 0.25, "idle": 1.0}.get(task, 0.0)


def test_time_and_cue_want_the_word_at_its_time_and_nothing_else() -> None:
    scene = next(
        s for s in (make_scene("timespeak", "test", n) for n in range(9)) if len(s.expected) > 1
    )
    words = [(want.word, want.at) for want in scene.expected]
    (first, at), rest = words[0], words[1:]
    assert score(scene, said((first, at + 0.29), *rest))["score"] == 1
    for wrong in (
        [(first, at + 0.31), *rest],
        [(first, at - 0.31), *rest],
        [("camera", at), *rest],
        rest,
        [*words, (first, at + 0.1)],
        [*words, ("one", scene.seconds - 0.1)],
    ):
        assert score(scene, said(*wrong))["score"] == 0
    marks = score(scene, said(*rest))
    assert marks["utterances"] == pytest.approx(len(rest) / len(words))


def test_cues_while_the_other_speaks_are_told_apart() -> None:
    scene = next(
        s
        for s in (make_scene("cuespeak", "test", n) for n in range(20))
        if s.facts["overlapped"][0]
    )
    late = [(w.word, w.at + (1.0 if i == 0 else 0.0)) for i, w in enumerate(scene.expected)]
    marks = score(scene, said(*late))
    assert marks["while_spoken_to"] < 1 and marks["score"] == 0


def test_the_last_number_after_the_last_but_one_repetition_counts() -> None:
    scene = make_scene("repcount", "test", 0)
    ends = tuple(float(k) for k in range(1, 8))
    scene = replace(scene, facts={**scene.facts, "ends": ends, "start": 0.0})
    right = [(want.word, want.at) for want in counted(ends)]
    assert score(scene, said(*right)) == {"score": 1, "exact": 1, "error_median": (0.0,)}
    assert score(scene, said(*right[:-1]))["score"] == 1  # "six", within one
    assert score(scene, said(*right[:-1]))["exact"] == 0
    assert score(scene, said(*right[:-1], (NUMBERS[9], 7.2)))["score"] == 0
    assert score(scene, said(*right[:-1], (NUMBERS[9], 7.2)))["error_median"] == (2.0,)
    assert score(scene, said(("seven", 5.5)))["score"] == 0, "too early to be the count"


def test_stretches_are_compared_by_their_overlap() -> None:
    scene = make_scene("charades", "test", 0)
    start, stop = scene.facts["start"], scene.facts["stop"]
    assert score(scene, said(("start", start), ("stop", stop)))["score"] == pytest.approx(1)
    half = score(scene, said(("start", (start + stop) / 2), ("stop", stop)))["score"]
    assert half == pytest.approx(0.5)
    never = score(scene, said(("start", start)))["score"]
    assert never == pytest.approx((stop - start) / (scene.seconds - start))
    assert score(scene, said(("stop", start)))["score"] == 0


def test_an_answer_is_worth_more_the_sooner_and_nothing_if_wrong_or_early() -> None:
    scene = make_scene("proactive", "test", 0)
    (want,), shown = scene.expected, scene.facts["shown"]
    until = scene.facts["until"]
    at_once = score(scene, said((want.word, shown)))["score"]
    later = score(scene, said((want.word, (shown + until) / 2)))["score"]
    assert at_once == 1 and later == pytest.approx(0.625)
    assert score(scene, said(("zero", shown)))["score"] == 0
    assert score(scene, said((want.word, shown), ("zero", shown + 1)))["score"] == 0
    early = score(scene, said((want.word, shown - 0.5)))
    assert early == {"score": 0, "early": 1}


def test_who_is_interrupted_falls_silent_to_the_ear_too() -> None:
    scene = make_scene("interrupt", "test", 0)
    reply = ideal(scene)
    ends = scene.facts["ends"]
    audio = np.zeros(len(scene.audio), np.float32)
    audio[: round((ends + 0.25) * SAMPLE_RATE)] = 0.1
    assert score(scene, Reply(reply.words, audio))["score"] == 1
    audio[round((ends + 0.5) * SAMPLE_RATE)] = 0.1
    assert score(scene, Reply(reply.words, audio))["score"] == 0
    assert score(scene, said(("one", ends - 9)))["was_speaking"] == 0
    goes_on = Reply((*reply.words, Word("ten", ends + 0.6, ends + 0.9)))
    assert score(scene, goes_on)["score"] == 0 and score(scene, goes_on)["stopped"] == 0
    assert "stopped" not in score(scene, said(("one", ends - 9)))


def test_a_remark_is_no_reason_to_stop() -> None:
    scene = make_scene("backchannel", "test", 0)
    cut = [(w.word, w.at) for w in scene.expected if w.at < scene.facts["ends"][-1]]
    marks = score(scene, said(*cut))
    assert marks["score"] == marks[f"after_{scene.facts['kind']}"] == 0
    assert 0 < marks["false_acknowledgements"] < 1
    assert "false_acknowledgements" not in score(scene, said()), "who never spoke stopped nothing"


def test_who_waits_goes_on_with_the_next_number() -> None:
    scene = make_scene("pause", "test", 0)
    resumed = scene.facts["resumed"]
    before = [(w.word, w.at) for w in scene.expected if w.at < resumed]
    assert score(scene, said(*before, ("one", resumed + 0.5)))["score"] == 0
    talks = [*before, ("ten", scene.facts["paused"] + 0.6)]
    assert score(scene, said(*talks))["held"] == 0


def test_latency_is_of_the_first_word_and_comes_with_how_many_were_answered() -> None:
    scene = make_scene("latency", "test", 0)
    words = [
        (w.word, end + 0.4) for w, end in zip(scene.expected, scene.facts["ends"], strict=True)
    ]
    marks = score(scene, said(*words))
    assert marks["latency_s_median"] == pytest.approx([0.4] * len(words))
    assert marks["take_over"] == 1
    marks = score(scene, said(("zero", words[0][1])))
    assert marks["score"] == 0 and marks["take_over"] == pytest.approx(1 / len(words))
    assert "latency_s_median" not in score(scene, said())


def test_talk_before_a_question_wants_no_answer() -> None:
    scene = next(s for s in (make_scene("latency", "test", n) for n in range(9)) if s.facts["idle"])
    (begin, end), *rest = scene.facts["idle"]
    minutes = (end - begin + sum(b - a for a, b in rest)) / 60
    marks = score(scene, said(("one", end + 0.2)))
    assert marks["false_starts_per_minute"] == pytest.approx((1, minutes))
    asked = scene.facts["ends"][0]
    answered = score(scene, said(("one", asked + 0.2)))
    assert answered["false_starts_per_minute"] == pytest.approx((0, minutes))


def test_false_starts_are_counted_by_the_minute() -> None:
    scene = make_scene("idle", "test", 0)
    marks = score(scene, said(("one", 3.0), ("two", 9.0)))
    assert marks["score"] == 0
    assert marks["false_starts_per_minute"] == (2, scene.facts["spoken_seconds"] / 60)


def test_intervals_enclose_their_mean() -> None:
    share = estimate([1.0] * 95 + [0.0] * 5)
    assert share.mean == 0.95 and share.low == pytest.approx(0.888, abs=1e-3)
    assert share.high == pytest.approx(0.978, abs=1e-3)
    every = estimate([1.0] * 300)
    assert every.high == pytest.approx(1) and every.low == pytest.approx(0.9873, abs=1e-3)
    mean = estimate([0.2, 0.4, 0.9, 0.5])
    assert mean.low < mean.mean < mean.high and mean.scenes == 4
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_a_rate_is_of_all_the_time_and_never_surely_nothing() -> None:
    some = rate([(1, 0.5), (0, 0.5), (3, 1.0)])
    assert some.mean == 2 and some.low < 2 < some.high and some.scenes == 3
    none = rate([(0, 1.0)] * 30)
    assert (none.mean, none.low, none.high) == (0, 0, pytest.approx(0.1))
    assert gather([{"false_starts_per_minute": (1, 0.5)}] * 3)["false_starts_per_minute"].mean == 2
    with pytest.raises(ValueError, match="some time"):
        rate([])


def test_medians_are_of_all_events() -> None:
    middle = median([[0.1, 0.2], [], [0.9], [0.3, 0.3]])
    assert middle.mean == pytest.approx(0.3) and middle.scenes == 3
    assert middle.low <= 0.3 <= middle.high
    found = gather([{"score": 1.0, "wait_median": (1.0, 3.0)}, {"score": 0.0}])
    assert found["score"].mean == 0.5 and found["wait_median"].mean == 2
    with pytest.raises(ValueError, match="at least one"):
        median([[]])
