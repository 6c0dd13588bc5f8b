"""One turn of a released model: a prompt of text, audio and images in, ids out one by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import ArenaSpec
from microturn.kernels.dmel import dmel, dmel_weights
from microturn.kernels.dmel.weights import HOP
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling import TEXT_STREAM, SamplingParams, sampling
from microturn.model.family import ArenaSet, Sampling
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.release import Inkling
from microturn.model.inkling.trunk import CURSOR, Trunk

PREFIX = "turn"

__all__ = ["CURSOR", "Prompt", "TurnSteps", "audio_bins", "draw", "prompt_rows", "turn_specs"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a turn begins with: T rows, of which A are audio frames and P image patches.

    ids       [T] int64, audio_id and image_id where a row of a tower stands
    bins      [A, mels] int64, all recordings in order
    patches   [P, 2, 40, 40, 3] int16, all images in order

    Raises ValueError when frames or patches are not as many as their rows.
    """

    ids: Tensor
    bins: Tensor
    patches: Tensor
    audio_id: int
    image_id: int

    def __post_init__(self) -> None:
        for what, token, rows in (
            ("audio frames", self.audio_id, self.bins),
            ("image patches", self.image_id, self.patches),
        ):
            wanted = int((self.ids == token).sum())
            if len(rows) != wanted:
                raise ValueError(f"the prompt has {wanted} rows for {len(rows)} {what}")


def audio_bins(samples: Tensor) -> Tensor:
    """A whole recording: [N] fp32 at 16 kHz in [-1, 1] -> bins [ceil(N / 800), 80] int64, zeros
    before and after it (spec/inkling.md 1.4).
    """
    hops = F.pad(samples, (0, -len(samples) % HOP)).view(-1, HOP)
    return dmel(hops, dmel_weights(), None, RowBatch.build([0], [len(hops)], [0]))


def prompt_rows(model: Inkling, prompt: Prompt, start: int, stop: int) -> Tensor:
    """Rows start : stop of the prompt -> [stop - start, H]: embeddings of its ids, normed, and the
    towers' rows, which are not (spec/inkling.md 1.2). Raises ValueError without the tower.
    """
    ids = prompt.ids[start:stop]
    x = model.trunk.embed(ids)
    for what, token, values, tower in (
        ("audio", prompt.audio_id, prompt.bins, model.audio),
        ("vision", prompt.image_id, prompt.patches, model.visual),
    ):
        here = ids == token
        count = int(here.sum())
        if count == 0:
            continue
        if tower is None:
            raise ValueError(f"these weights have no {what} tower, the prompt has rows for one")
        first = int((prompt.ids[:start] == token).sum())
        x[here] = tower(values[first : first + count])
    return x


def turn_specs(config: TrunkConfig) -> tuple[ArenaSpec, ...]:
    """The arenas of a turn under a trunk of these sizes; nothing is allocated."""
    with torch.device("meta"):
        return Trunk(config).arena_specs(PREFIX)


class TurnSteps:
    """The passes of one turn over arenas of `turn_specs`, slot 0."""

    def __init__(self, model: Inkling, arenas: ArenaSet) -> None:
        self._model = model
        self._arenas = arenas
        self._state = model.trunk.bind(arenas, PREFIX)

    def append(self, x: Tensor) -> Tensor:
        """x [n, H], the next rows, at most max_rows_per_tick -> logits [1, V] fp32 after the last.

        The caller commits n rows of CURSOR.
        """
        rows = RowBatch.build([0], [len(x)], [self._arenas.committed(CURSOR, 0)])
        hidden = self._model.trunk(x, self._state, rows)
        return self._model.trunk.logits(hidden[-1:])

    def embed(self, token: int) -> Tensor:
        """[1, H]: the row of a written id."""
        return self._model.trunk.embed(torch.tensor([token]))


def draw(logits: Tensor, how: Sampling, seed: int, step: int) -> int:
    """The id of a reply's token `step`, from logits [1, V] fp32. Raises FloatingPointError unless
    they are finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError(f"the logits of token {step} of the reply are not finite")
    params = SamplingParams(
        torch.tensor([how.text_temperature]),
        torch.tensor([how.text_top_k]),
        torch.tensor([seed]),
        torch.tensor([step]),
        TEXT_STREAM,
    )
    return int(sampling(logits, params, None, None))
