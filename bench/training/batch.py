"""Scripts side by side, as the rows of spec/interaction.md 1 that the trunk reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from microturn.bench.training.script import TICK_SLOTS, Script
from microturn.kernels.rows import RowBatch
from microturn.model.interaction.model import InteractionModel
from microturn.runtime.image_input import to_patches


@dataclass(frozen=True)
class Voicing:
    """The codes of every word, as the model says it.

    words  by 1 + index in SPOKEN: [F, Q] int64
    silence [Q] int64
    """

    words: Mapping[int, Tensor]
    silence: Tensor

    def codes(self, word: Tensor, since: Tensor) -> Tensor:
        """word, since [T] as in Script -> [T, Q]; after a word's last frame, silence."""
        made = self.silence.expand(len(word), -1).clone()
        for index, frames in self.words.items():
            inside = (word == index) & (since < len(frames))
            made[inside] = frames[since[inside]]
        return made


class Batch(NamedTuple):
    """N scripts of K ticks, 2 K slots each; shorter ones are padded and `real` says where.

    bins [N, 2K, mels], patches [N, K, 2, 40, 40, 3] int16 or None, text, due, pending,
    hearing [N, 2K], codes [N, 2K, Q], real [N, 2K] bool
    """

    bins: Tensor
    patches: Tensor | None
    text: Tensor
    codes: Tensor
    due: Tensor
    pending: Tensor
    hearing: Tensor
    real: Tensor


def collate(scripts: Sequence[Script], voicing: Voicing, listen_id: int) -> Batch:
    """All with pictures or all without. Raises ValueError on a mixture."""
    seeing = {script.pictures is not None for script in scripts}
    if len(seeing) != 1:
        raise ValueError("scripts of one batch must all have pictures, or none of them")
    slots = max(len(script.text) for script in scripts)

    def pad(values: np.ndarray, fill: int) -> Tensor:
        width = [(0, slots - len(values))] + [(0, 0)] * (values.ndim - 1)
        return torch.from_numpy(np.pad(values, width, constant_values=fill)).long()

    def stack(name: str, fill: int = 0) -> Tensor:
        return torch.stack([pad(getattr(script, name), fill) for script in scripts])

    word, since = stack("word"), stack("since", fill=1 << 20)
    codes = torch.stack([voicing.codes(w, s) for w, s in zip(word, since, strict=True)])
    real = torch.stack([torch.arange(slots) < len(script.text) for script in scripts])
    ticks = slots // TICK_SLOTS
    patches = torch.stack([_patches(s, ticks) for s in scripts]) if seeing == {True} else None
    return Batch(
        stack("bins"),
        patches,
        stack("text", listen_id),
        codes,
        stack("due"),
        stack("pending"),
        stack("hearing"),
        real,
    )


def _patches(script: Script, ticks: int) -> Tensor:
    """[ticks, 2, 40, 40, 3]: each picture with the one before it, as a session shows them."""
    assert script.pictures is not None
    before, made = None, []
    for picture in script.pictures:
        (patch,) = to_patches(picture, 1, before)
        made.append(patch)
        before = picture
    made += [made[-1]] * (ticks - len(made))
    return torch.from_numpy(np.stack(made))


def embed(model: InteractionModel, batch: Batch) -> tuple[Tensor, RowBatch]:
    """[T, H] and what its rows are: a line a script, R rows a tick: the last output fed back, a
    patch if any, two slots of audio, the first output fed back.
    """
    config = model.config
    n, slots = batch.text.shape
    ticks = slots // TICK_SLOTS
    nothing = torch.full_like(batch.codes[:, :1], config.codec.codebook_size)
    start = torch.full_like(batch.text[:, :1], config.start_id)
    text = torch.cat([start, batch.text], 1)[:, :-1]
    codes = torch.cat([nothing, batch.codes], 1)[:, :-1]
    real = batch.real[:, ::TICK_SLOTS]

    def by_tick(x: Tensor) -> Tensor:
        return x.view(n, ticks, -1, *x.shape[2:])[real]

    fed_text, fed_codes = by_tick(text), by_tick(codes)
    fed = model.embed_feedback(fed_text.flatten(), fed_codes.flatten(0, 1))
    fed = fed.view(*fed_text.shape, -1)
    bins = by_tick(batch.bins)
    rows = [fed[:, :1], model.audio(bins.flatten(0, 1)).view(*bins.shape[:2], -1), fed[:, 1:]]
    if batch.patches is not None:
        assert model.visual is not None
        rows.insert(1, model.visual(batch.patches[real])[:, None])
    x = torch.cat(rows, 1)
    counts = [int(count) * x.shape[1] for count in real.sum(1)]
    return x.flatten(0, 1), RowBatch.build(range(n), counts, [0] * n)


def outputs(hidden: Tensor, batch: Batch) -> Tensor:
    """hidden [T, H] of `embed`'s rows -> [M, H]: the rows that predict slots, those of
    `batch.real` in order.
    """
    ticks = int(batch.real.sum()) // TICK_SLOTS
    by_tick = hidden.view(ticks, -1, hidden.shape[-1])
    return by_tick[:, -TICK_SLOTS:].flatten(0, 1)
