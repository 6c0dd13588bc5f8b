"""The text stream of `interaction-tiny`: words it says, and words it notes that it heard.

A heard word is a token of its own that no transcript shows. The model writes it into its text
stream right after it was spoken to, and so reads back what it understood (training-notes: this
helped every ability).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from microturn.bench.interactivity import vocabulary
from microturn.bench.interactivity.tasks.answering import QUESTIONS
from microturn.bench.interactivity.tasks.charades import REQUESTS as WATCH
from microturn.bench.interactivity.tasks.counting import INTERRUPTIONS, PAUSES, RESUMES
from microturn.bench.interactivity.tasks.counting import REQUESTS as COUNT
from microturn.bench.interactivity.tasks.cuespeak import REQUESTS as CUE
from microturn.bench.interactivity.tasks.proactive import COLOUR_QUESTIONS, MOTION_QUESTIONS
from microturn.bench.interactivity.tasks.repcount import REQUESTS as REPETITIONS
from microturn.bench.interactivity.tasks.repcount import SEEN
from microturn.bench.interactivity.tasks.timespeak import EVERY, ONCE, STOP
from microturn.model.interaction.tokenizer import FileTokenizer

OTHER = "<heard>"
"""Stands for every word that no request needs."""


TEMPLATES = (
    *(EVERY + ONCE + STOP + CUE + REPETITIONS + WATCH + COLOUR_QUESTIONS + MOTION_QUESTIONS),
    *(COUNT + INTERRUPTIONS + PAUSES + RESUMES + QUESTIONS),
)


def heard_words() -> tuple[str, ...]:
    """Every word of a request, whatever fills it, sorted."""
    words = {word for text in TEMPLATES for word in text.split() if "{" not in word}
    named = {name for names in SEEN.values() for name in names} | {"reps"}
    filled = (vocabulary.SPOKEN, vocabulary.CUES, vocabulary.REPLIES, vocabulary.MOTION_WORDS)
    return tuple(sorted(words.union(named, *filled)))


@dataclass(frozen=True)
class Lexicon:
    """Ids of said and heard words in a tokenizer that knows both.

    Raises ValueError naming words that are not one token each.
    """

    tokenizer: FileTokenizer
    listen_id: int

    def __post_init__(self) -> None:
        if lacking := [w for w in vocabulary.SPOKEN if len(self.tokenizer.encode(w)) != 1]:
            raise ValueError(f"not one token each: {', '.join(lacking)}")
        tokens = (OTHER, *map(heard_token, heard_words()))
        if lacking := [t for t in tokens if not self.tokenizer.special_ids(t)]:
            raise ValueError(f"the tokenizer has no {', '.join(lacking)}")

    @cached_property
    def said(self) -> dict[str, int]:
        return {word: self.tokenizer.encode(word)[0] for word in vocabulary.SPOKEN}

    @cached_property
    def heard(self) -> dict[str, int]:
        return {word: self.tokenizer.special_ids(heard_token(word))[0] for word in heard_words()}

    @cached_property
    def other(self) -> int:
        return self.tokenizer.special_ids(OTHER)[0]

    @cached_property
    def classes(self) -> dict[str, int]:
        """By heard word, from 1 on; the class after them is for every other word."""
        return {word: 1 + i for i, word in enumerate(heard_words())}

    def heard_id(self, word: str) -> int:
        return self.heard.get(word, self.other)

    def heard_class(self, word: str) -> int:
        return self.classes.get(word, len(self.classes) + 1)


def heard_token(word: str) -> str:
    return f"<heard:{word}>"
