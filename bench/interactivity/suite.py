"""The `interactivity` suite: systems through the scenes of a split, scored.

Rows add to schema 1: score in percent with low and high (95 %), count scenes, marks by name (see
scoring.py), each with its interval. The case says task, split, condition and by what it was scored:
the text stream, or what a recogniser heard in the audio. Two marks compare rows, scene by scene:
`lost`, of a condition that is not clean, is the clean score minus this one; `text_minus_audio`, of
a row scored by audio, is by how much the text stream scored better.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from microturn.bench.interactivity.intervals import Estimate, estimate
from microturn.bench.interactivity.ledger import Answer, Marks
from microturn.bench.interactivity.players import LEAK, Job
from microturn.bench.interactivity.scene import CONDITIONS
from microturn.bench.interactivity.scoring import gather

WORDS = "synthetic counterpart: ratios, not values, compare"
EVERY = (*CONDITIONS, LEAK)


class Published(NamedTuple):
    """Percent, of the interaction model, of a turn-based one, of silence."""

    interaction: float
    turns: float
    silent: float

    def of(self, provider: str) -> float:
        return self[("microturn", "harness", "silent").index(provider)]


PUBLISHED: Mapping[str, Published] = {
    "timespeak": Published(64.7, 4.3, 0.0),
    "cuespeak": Published(81.7, 2.9, 0.0),
    "repcount": Published(35.4, 1.3, 0.0),
    "proactive": Published(33.5, 25.0, 25.0),
    "charades": Published(32.4, 0.0, 0.0),
}
"""spec/interaction.md 4."""


@dataclass(frozen=True)
class Plan:
    """What is played: so many scenes of each task under each condition."""

    tasks: tuple[str, ...]
    count: int
    split: str = "test"
    conditions: tuple[str, ...] = ("clean",)

    def jobs(self) -> Iterator[Job]:
        """All of them; those of each task and condition spread evenly, so that estimates made on
        the way are of everything.
        """
        for number in range(self.count):
            for condition in self.conditions:
                for task in self.tasks:
                    yield Job(task, self.split, number, condition)


class _Key(NamedTuple):
    provider: str
    task: str
    condition: str
    by: str


def rows(plan: Plan, answers: Iterable[Answer], notes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the document, by provider, condition and task. notes: by provider."""
    wanted = set(plan.jobs())
    found: dict[_Key, dict[int, Marks]] = defaultdict(dict)
    split: dict[_Key, str] = {}
    for answer in answers:
        if answer.job not in wanted:
            continue
        for by, marks in (("text", answer.text), ("audio", answer.audio)):
            if marks is not None:
                key = _Key(answer.provider, answer.job.task, answer.job.condition, by)
                found[key][answer.job.number], split[key] = marks, answer.job.split
    made = []
    for provider in notes:
        for condition in plan.conditions:
            for task in plan.tasks:
                for by in ("text", "audio"):
                    key = _Key(provider, task, condition, by)
                    if key in found:
                        scored = [marks for _, marks in sorted(found[key].items())]
                        marks = gather(scored) | _compared(key, found)
                        made.append(row(key, split[key], marks, notes[provider]))
    return made


def _compared(key: _Key, found: Mapping[_Key, Mapping[int, Marks]]) -> dict[str, Estimate]:
    others = {"lost": key._replace(condition="clean"), "text_minus_audio": key._replace(by="text")}
    return {
        name: estimate(list(_differences(found[other], found[key])))
        for name, other in others.items()
        if other != key and other in found and found[other].keys() & found[key].keys()
    }


def _differences(first: Mapping[int, Marks], second: Mapping[int, Marks]) -> Iterator[float]:
    for number in sorted(first.keys() & second.keys()):
        one, other = first[number]["score"], second[number]["score"]
        assert not isinstance(one, Sequence) and not isinstance(other, Sequence)
        yield one - other


def row(key: _Key, split: str, marks: Mapping[str, Estimate], note: str) -> dict[str, Any]:
    """A row of the document."""
    main = marks["score"]
    return {
        "op": "interactivity",
        "case": f"task={key.task},split={split},condition={key.condition},scored={key.by}",
        "dtype": "fp32",
        "provider": key.provider,
        "score": _percent(main.mean),
        "low": _percent(main.low),
        "high": _percent(main.high),
        "count": main.scenes,
        "marks": {
            name: [round(value.mean, 4), round(value.low, 4), round(value.high, 4)]
            for name, value in marks.items()
            if name != "score"
        },
        "note": "; ".join(part for part in (note, WORDS) if part),
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)
