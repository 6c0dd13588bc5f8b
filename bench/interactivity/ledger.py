"""Raw answers, a line of JSON for each scene: what a long run goes on from, and what is published
with the scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microturn.bench.interactivity.players import Job
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.speech import Word

Marks = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class Answer:
    """What a provider made of one scene, seconds from its beginning.

    text, said    marks by the text stream, and its words
    audio, heard  the same of what a recogniser heard; None where nobody listened
    """

    provider: str
    job: Job
    text: Marks
    said: tuple[Word, ...]
    audio: Marks | None = None
    heard: tuple[Word, ...] | None = None

    def line(self) -> str:
        return json.dumps(asdict(self) | {"job": self.job, "said": _rounded(self.said)})

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Answer:
        heard = line["heard"]
        return cls(
            line["provider"],
            Job(*line["job"]),
            line["text"],
            tuple(Word(*word) for word in line["said"]),
            line["audio"],
            None if heard is None else tuple(Word(*word) for word in heard),
        )

    @property
    def reply(self) -> Reply:
        return Reply(self.said)


class Ledger:
    """Answers so far, by provider and job. path: a file that every further one is added to, with
    what a run before left in it; None: they are kept in memory alone.

    Raises OSError, ValueError naming the line that is none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.answers: dict[tuple[str, Job], Answer] = {}
        self._settings: dict[str, Any] = {}
        self._path = path
        if path is not None and path.exists():
            self._read(path)

    def settings(self, provider: str, wanted: Mapping[str, Any]) -> None:
        """What the answers of `provider` depend on. Raises ValueError where those already there
        were given under others.
        """
        before = self._settings.get(provider)
        if before is None:
            self._settings[provider] = dict(wanted)
            self._append(json.dumps({"settings": {provider: wanted}}))
        elif before != wanted:
            other = [key for key in wanted if before.get(key) != wanted[key]]
            differences = "; ".join(
                f"{key} {before.get(key)!r}, now {wanted[key]!r}" for key in other
            )
            raise ValueError(
                f"{self._path} holds answers of {provider} under other settings ({differences}): "
                f"go on with those, or write to another file"
            )

    def known(self, provider: str) -> Mapping[str, Any] | None:
        """The settings of a run before."""
        found: Mapping[str, Any] | None = self._settings.get(provider)
        return found

    def add(self, answer: Answer) -> None:
        self.answers[answer.provider, answer.job] = answer
        self._append(answer.line())

    def _append(self, line: str) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def _read(self, path: Path) -> None:
        """A last line that a run cut short is taken off the file."""
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                found = json.loads(line)
                if "settings" in found:
                    self._settings |= found["settings"]
                else:
                    answer = Answer.of(found)
                    self.answers[answer.provider, answer.job] = answer
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is no answer ({error})") from None


def _rounded(words: Sequence[Word]) -> list[tuple[str, float, float]]:
    return [(word.text, round(word.start, 3), round(word.end, 3)) for word in words]
