"""CueSpeak: say a word whenever a cue is heard, also while the other goes on talking."""

from __future__ import annotations

from numpy.random import Generator

from microturn.bench.interactivity.scene import Expected, Scene, Take, room_of
from microturn.bench.interactivity.speech import Voice
from microturn.bench.interactivity.splits import Split, pick, spoken
from microturn.bench.interactivity.vocabulary import CUES, REPLIES, SENTENCES

REQUESTS = (
    "every time i say {cue} say {reply}",
    "when i say {cue} say {reply}",
    "say {reply} when you hear {cue}",
    "whenever i say {cue} say {reply}",
    "say {reply} every time i say {cue}",
    "please say {reply} whenever you hear {cue}",
)
REACTION = 0.3
"""Seconds after the end of a cue at which the answer is due: it may begin from the cue's end to
twice this."""


def cuespeak(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """One to three cues among other talk. About half are in the middle of a sentence, so that the
    answer is due while the other speaks; the others are followed by a pause. Other cue words occur
    too and want no answer.
    """
    voice, take = split.voice(rng), Take()
    cue, reply = split.pair(rng, CUES, REPLIES)
    asked = take.say(
        spoken(split.wording(rng, REQUESTS).format(cue=cue, reply=reply), voice),
        float(rng.uniform(0.3, 1.0)),
    )
    at = asked + float(rng.uniform(1.0, 2.0))
    expected: list[Expected] = []
    overlapped: list[bool] = []
    kinds = ["cue"] * int(rng.integers(1, 4)) + ["other"] * int(rng.integers(1, 3))
    rng.shuffle(kinds)
    for kind in kinds:
        word = cue if kind == "cue" else pick(rng, [c for c in CUES if c != cue])
        inside = bool(rng.random() < 0.5)
        cue_end, at = _talk(take, voice, rng, word, at, inside)
        if kind == "cue":
            expected.append(Expected(reply, cue_end + REACTION))
            overlapped.append(inside)
        at = max(at, cue_end + 1.0) + float(rng.uniform(0.4, 1.5))
    room = room_of(condition, rng)
    return Scene(
        name=name,
        task="cuespeak",
        split=split.name,
        audio=take.record(at + 0.6, room, rng),
        film=None,
        expected=tuple(expected),
        heard=take.heard,
        facts={"asked": asked, "overlapped": tuple(overlapped), "cue": cue},
    )


def _talk(
    take: Take, voice: Voice, rng: Generator, word: str, at: float, inside: bool
) -> tuple[float, float]:
    """Some words, `word`, and more words right after it if `inside`; the ends of word and talk."""
    before, after = (pick(rng, SENTENCES) for _ in range(2))
    if rng.random() < 0.7:
        at = take.say(spoken(before, voice), at) + 0.08
    ends = take.say(spoken(word, voice), at)
    if not inside:
        return ends, ends
    return ends, take.say(spoken(after, voice), ends + 0.08)
