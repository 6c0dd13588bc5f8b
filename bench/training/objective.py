"""What a step minimises: text, codes, and three guides that only training has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microturn.bench.interactivity.vocabulary import SPOKEN
from microturn.bench.training.batch import Batch, embed, outputs
from microturn.bench.training.lexicon import Lexicon
from microturn.bench.training.script import HORIZONS
from microturn.model.interaction.model import InteractionModel


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss, and of a slot by what is to be written in it."""

    listen: float = 0.1
    heard: float = 0.5
    said: float = 3.0
    due: float = 0.2
    pending: float = 0.2
    hearing: float = 0.5
    depth: float = 0.5
    silence: float = 0.05


class Guides(nn.Module):
    """Heads that only training has: when the next word is due, which it is, and what is heard."""

    def __init__(self, hidden_size: int, num_heard: int) -> None:
        super().__init__()
        self.due = nn.Linear(hidden_size, 1 + len(HORIZONS))
        self.pending = nn.Linear(hidden_size, 1 + len(SPOKEN))
        self.hearing = nn.Linear(hidden_size, num_heard)


class Losses(NamedTuple):
    """total is what is minimised; right: of heard and of said words, the share written in their
    slot.
    """

    total: Tensor
    text: Tensor
    due: Tensor
    pending: Tensor
    hearing: Tensor
    depth: Tensor
    heard_right: float
    said_right: float


def losses(
    model: InteractionModel, guides: Guides, batch: Batch, weights: Weights, lexicon: Lexicon
) -> Losses:
    """Of one batch, teacher-forced."""
    x, rows = embed(model, batch)
    hidden = outputs(model.trunk(x, None, rows), batch)
    text, codes = batch.text[batch.real], batch.codes[batch.real]
    logits = model.trunk.logits(hidden)
    said = torch.isin(text, torch.tensor(list(lexicon.said.values())))
    heard = (text != lexicon.listen_id) & ~said
    slot = torch.where(said, weights.said, torch.where(heard, weights.heard, weights.listen))
    by_text = _mean(F.cross_entropy(logits, text, reduction="none"), slot)
    due = F.cross_entropy(guides.due(hidden), batch.due[batch.real])
    pending = F.cross_entropy(guides.pending(hidden), batch.pending[batch.real])
    word = batch.hearing[batch.real]
    hearing = F.cross_entropy(guides.hearing(hidden), word, reduction="none")
    hearing = _mean(hearing, torch.where(word > 0, 1.0, weights.listen))
    depth = _depth(model, hidden, text, codes, weights.silence)
    guided = weights.due * due + weights.pending * pending + weights.hearing * hearing
    total = by_text + guided + weights.depth * depth
    with torch.no_grad():
        right = logits.argmax(-1) == text
    return Losses(
        total, by_text, due, pending, hearing, depth, _share(right[heard]), _share(right[said])
    )


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum()


def _share(right: Tensor) -> float:
    return float(right.float().mean()) if len(right) else float("nan")


def _depth(
    model: InteractionModel, hidden: Tensor, text: Tensor, codes: Tensor, silence: float
) -> Tensor:
    """Cross entropy of the codes of frames that sound, and of a share of the silent ones."""
    sounds = (codes != codes[0]).any(1)
    chosen = sounds | (torch.rand(len(codes)) < silence)
    if not bool(chosen.any()):
        return hidden.sum() * 0
    logits = model.depth.teacher_forced(hidden[chosen], text[chosen], codes[chosen])
    return F.cross_entropy(logits.flatten(0, 1), codes[chosen].flatten())
