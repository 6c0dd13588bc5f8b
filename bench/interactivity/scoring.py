"""One scene's marks, by the published rules (spec/interaction.md 4) where there are some.

A rule takes a scene and a reply and gives marks by name: numbers that are averaged over scenes,
shares in [0, 1]; or tuples, where the name ends in "_median" one number for each event of the scene
(the median of all is what counts), where it ends in "per_minute" events and minutes. `score` is the
task's own figure. A mark that does not apply to a scene is left out and does not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from microturn.bench.interactivity.intervals import Estimate, estimate, median, rate
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import LATEST, Expected, Scene
from microturn.bench.interactivity.speech import Word
from microturn.bench.interactivity.tasks.answering import LONGEST
from microturn.bench.interactivity.tasks.counting import PACE
from microturn.bench.interactivity.vocabulary import NUMBERS

Marks = dict[str, float | tuple[float, ...]]


def on_time(scene: Scene, reply: Reply) -> Marks:
    """TimeSpeak and CueSpeak. score: all that was expected was said, the right word at its time,
    and nothing else; no partial credit. Apart from it: `utterances` of those expected that were
    right, `spurious` words a minute; of cues, `while_spoken_to` those due while the other speaks.
    """
    right, rest = match(scene.expected, reply.words)
    marks: Marks = {
        "score": float(all(right) and not rest),
        "spurious_per_minute": (len(rest), scene.seconds / 60),
    }
    if right:
        marks["utterances"] = sum(right) / len(right)
    overlapped = scene.facts.get("overlapped", ())
    while_spoken_to = [ok for ok, over in zip(right, overlapped, strict=bool(overlapped)) if over]
    if while_spoken_to:
        marks["while_spoken_to"] = sum(while_spoken_to) / len(while_spoken_to)
    return marks


def match(
    expected: Sequence[Expected], said: Sequence[Word]
) -> tuple[tuple[bool, ...], tuple[Word, ...]]:
    """Which of expected were said right, each by a word of its own; and the words left over."""
    rest = list(said)
    right = []
    for want in expected:
        found = next((w for w in rest if w.text == want.word and want.on_time(w.start)), None)
        right.append(found is not None)
        if found is not None:
            rest.remove(found)
    return tuple(right), tuple(rest)


def repetitions(scene: Scene, reply: Reply) -> Marks:
    """RepCount. The count is the last number said after the last but one true repetition ended.
    score: it is off by one at most; exact: it is right; error_median: by how much it is too high.
    """
    ends = scene.facts["ends"]
    after = reply.between(ends[-2] if len(ends) > 1 else scene.facts["start"], scene.seconds)
    counts = [NUMBERS.index(word.text) for word in after if word.text in NUMBERS]
    if not counts:
        return {"score": 0.0, "exact": 0.0}
    error = counts[-1] - len(ends)
    marks: Marks = {"score": float(abs(error) <= 1), "exact": float(error == 0)}
    return {**marks, "error_median": (float(error),)}


def overlap(scene: Scene, reply: Reply) -> Marks:
    """Charades-style. score: the intersection over union of the true stretch and the one from the
    first "start" to the first "stop" after it; without a "stop" it lasts to the end.
    """
    start, stop = scene.facts["start"], scene.facts["stop"]
    begin = next((w.start for w in reply.words if w.text == "start"), None)
    if begin is None:
        return {"score": 0.0}
    later = (w.start for w in reply.words if w.text == "stop" and w.start > begin)
    end = next(later, scene.seconds)
    common = max(0.0, min(end, stop) - max(begin, start))
    union = (end - begin) + (stop - start) - common
    return {"score": common / union}


SILENT = 0.25
"""What saying nothing is worth at weight 0.5, as published: half of the half for not being wrong.
"""


def proactive(scene: Scene, reply: Reply) -> Marks:
    """ProactiveVideoQA-style, PAUC at weight 0.5. The worth of what has been said so far, averaged
    over the time in which an answer counts: SILENT before anything is said, 1 from the right
    answer on, 0 from a wrong word on, and for good once something was said before the picture
    showed it. So silence scores 25, as published; curve and weights are our reading of the paper
    (arXiv 2507.09313), whose judge gives marks to sentences, here to single words.
    """
    (want,) = scene.expected
    shown, until = scene.facts["shown"], scene.facts["until"]
    before = reply.between(scene.facts["asked"], shown)
    said = reply.between(shown, until)
    marks: Marks = {"early": float(bool(before))}
    if before:
        return {"score": 0.0, **marks}
    if not said:
        return {"score": SILENT, **marks}
    first = said[0]
    worth = float(all(word.text == want.word for word in said))
    waited = (first.start - shown) / (until - shown)
    return {"score": waited * SILENT + (1 - waited) * worth, **marks}


def interruption(scene: Scene, reply: Reply) -> Marks:
    """score: it was speaking when it was interrupted, and from 300 ms after the interruption on it
    is silent. was_speaking: the first of these; stopped: the second where the first holds.
    """
    begin, ends, until = (scene.facts[name] for name in ("begin", "ends", "until"))
    speaking = bool(reply.between(begin - 1.5 * PACE, begin))
    quiet = reply.last_sound(ends + LATEST, until) is None
    marks: Marks = {"score": float(speaking and quiet), "was_speaking": float(speaking)}
    if speaking:
        marks["stopped"] = float(quiet)
    return marks


def carries_on(scene: Scene, reply: Reply) -> Marks:
    """score: after each remark a number follows within two beats. Apart from it the same for each
    kind of remark, and `false_acknowledgements`: of remarks of whatever kind, those that it took
    for a reason to stop.
    """
    beats = 2 * PACE
    followed = [
        any(word.text in NUMBERS for word in reply.between(end, end + beats))
        for end in scene.facts["ends"]
    ]
    kept = float(all(followed))
    marks: Marks = {"score": kept, f"after_{scene.facts['kind']}": kept}
    if any(word.text in NUMBERS for word in reply.words):
        marks["false_acknowledgements"] = 1 - sum(followed) / len(followed)
    return marks


def resumption(scene: Scene, reply: Reply) -> Marks:
    """score: silent from 300 ms after "wait" until told to go on, then within two beats the number
    that follows the last one said.
    """
    paused, resumed = scene.facts["paused"], scene.facts["resumed"]
    before = [w for w in reply.words if w.text in NUMBERS and w.start < paused + LATEST]
    held = bool(before) and reply.last_sound(paused + LATEST, resumed) is None
    after = reply.between(resumed, resumed + 2 * PACE)
    follows = bool(before and after) and _follows(before[-1], after[0])
    return {"score": float(held and follows), "held": float(held), "resumed": float(bool(after))}


def _follows(word: Word, following: Word) -> bool:
    if following.text not in NUMBERS:
        return False
    return NUMBERS.index(following.text) == NUMBERS.index(word.text) + 1


def promptness(scene: Scene, reply: Reply) -> Marks:
    """score: the share of questions answered right within LONGEST. Apart from it `take_over`, those
    answered at all; `latency_s_median`, of these the first word minus the question's end; and
    `false_starts_per_minute` of the talk before questions, which wants no answer.
    """
    ends = scene.facts["ends"]
    answers = [reply.between(end, end + LONGEST) for end in ends]
    waits = tuple(said[0].start - end for end, said in zip(ends, answers, strict=True) if said)
    right = [
        bool(said) and said[0].text == want.word
        for said, want in zip(answers, scene.expected, strict=True)
    ]
    marks: Marks = {"score": sum(right) / len(right), "take_over": len(waits) / len(right)}
    if waits:
        marks["latency_s_median"] = waits
    minutes = sum(end - begin for begin, end in scene.facts["idle"]) / 60
    if minutes:
        uncalled = len(reply.words) - sum(map(len, answers))
        marks["false_starts_per_minute"] = (uncalled, minutes)
    return marks


def false_starts(scene: Scene, reply: Reply) -> Marks:
    """score: nothing was said. Apart from it words a minute of speech that was for nobody."""
    minutes = scene.facts["spoken_seconds"] / 60
    said = len(reply.words)
    return {"score": float(not said), "false_starts_per_minute": (said, minutes)}


RULES: Mapping[str, Callable[[Scene, Reply], Marks]] = {
    "timespeak": on_time,
    "cuespeak": on_time,
    "repcount": repetitions,
    "charades": overlap,
    "proactive": proactive,
    "interrupt": interruption,
    "backchannel": carries_on,
    "pause": resumption,
    "latency": promptness,
    "idle": false_starts,
}


def gather(scored: Iterable[Mapping[str, float | Sequence[float]]]) -> dict[str, Estimate]:
    """Of the marks of many scenes, the mean of each name, the median or the rate."""
    found: dict[str, list[Any]] = defaultdict(list)
    for marks in scored:
        for name, value in marks.items():
            found[name].append(value)
    return {name: _kind(name)(values) for name, values in found.items()}


def _kind(name: str) -> Callable[[list[Any]], Estimate]:
    if name.endswith("_median"):
        return median
    return rate if name.endswith("per_minute") else estimate


def score(scene: Scene, reply: Reply) -> Marks:
    """The marks of one reply, by the rule of its task."""
    return RULES[scene.task](scene, reply)
