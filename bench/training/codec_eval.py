"""What an independent recogniser makes of speech that went through the codec.

Two sets. `own`: utterances as the model will speak, in the voice itself, each word from the start
of a frame on. The utterances are held out, the words are not: orders of five and pauses that
training, which hears three at a time from other seeds, never had, of words that it knows, each of
which has one rendition. `held_out`: renditions of the voice at pitches that training never heard,
begun anywhere in a frame. A word counts when the recogniser hears it, and nothing else, where it
was said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import soxr
import torch

from microturn.bench.interactivity.intervals import estimate
from microturn.bench.interactivity.recogniser import Recogniser
from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio, Word
from microturn.bench.training.voice import CODEC_RATE, WORDS, utterance
from microturn.model.mimi import Mimi

SETS = {"own": 1.0, "held_out": 0.0}
"""Share of canonical words (`voice.utterance`)."""
SEED = 900_000
"""Training's generators are seeded by (seed, step); these by (SEED, set, utterance)."""
WORDS_EACH = 5


@dataclass(frozen=True)
class Score:
    """original, decoded: percent of `words` recognised before and after the codec.

    kept: percent still recognised of those that were recognised in the original; low, high: its
    95 % interval, words being independent. by_type: the mean over the `types` different words of
    what is kept of each; type_low, type_high: its interval, only types being independent, as one
    word said twice is in `own`. mistaken: "said>heard" of the others, most frequent first.
    """

    words: int
    original: float
    decoded: float
    kept: float
    low: float
    high: float
    types: int
    by_type: float
    type_low: float
    type_high: float
    mistaken: tuple[str, ...]


def evaluate(codec: Mimi, utterances: int) -> dict[str, Any]:
    """Scores of each of SETS over so many utterances of WORDS_EACH words; bits a second."""
    recogniser = Recogniser(WORDS)
    config = codec.config
    bits = config.num_codebooks * np.log2(config.codebook_size) * config.frame_rate
    return {
        "vocabulary": len(WORDS),
        "bits_per_second": round(float(bits)),
        **{name: asdict(score(codec, recogniser, name, utterances)) for name in SETS},
    }


def score(codec: Mimi, recogniser: Recogniser, name: str, utterances: int) -> Score:
    """One of SETS."""
    before: list[bool] = []
    after: list[bool] = []
    mistakes: dict[str, int] = {}
    types: dict[str, list[float]] = {}
    for audio, said in _held_out(name, utterances):
        with torch.inference_mode():
            decoded = codec.decode(codec.encode(torch.from_numpy(audio))).numpy()
        for given, right in ((audio, before), (decoded, after)):
            found = heard_at(said, recogniser.hear(_at_16_khz(given)))
            right += [text == word.text for text, word in zip(found, said, strict=True)]
        for text, word, known in zip(found, said, before[-len(said) :], strict=True):
            if known:
                types.setdefault(word.text, []).append(float(text == word.text))
            if text != word.text:
                mistake = f"{word.text}>{text}"
                mistakes[mistake] = mistakes.get(mistake, 0) + 1
    kept = estimate([float(a) for b, a in zip(before, after, strict=True) if b])
    of_types = estimate([fmean(one) for one in types.values()])
    return Score(
        words=len(before),
        original=_percent(sum(before) / len(before)),
        decoded=_percent(sum(after) / len(after)),
        kept=_percent(kept.mean),
        low=_percent(kept.low),
        high=_percent(kept.high),
        types=of_types.scenes,
        by_type=_percent(of_types.mean),
        type_low=_percent(of_types.low),
        type_high=_percent(of_types.high),
        mistaken=tuple(sorted(mistakes, key=lambda m: -mistakes[m])[:12]),
    )


def heard_at(said: Sequence[Word], heard: Sequence[Word]) -> list[str]:
    """What was heard during each word, joined by "+"; "" for nothing."""
    return [
        "+".join(h.text for h in heard if h.start < word.end and word.start < h.end)
        for word in said
    ]


def _held_out(name: str, utterances: int) -> Iterator[tuple[Audio, tuple[Word, ...]]]:
    for i in range(utterances):
        rng = np.random.default_rng((SEED, list(SETS).index(name), i))
        made = utterance(rng, WORDS_EACH, canonical=SETS[name], held_out=True)
        yield made.audio, made.words


def _at_16_khz(audio: Audio) -> Audio:
    heard: Audio = soxr.resample(audio, CODEC_RATE, SAMPLE_RATE).astype(np.float32)
    return heard


def _percent(share: float) -> float:
    return round(100 * share, 2)
