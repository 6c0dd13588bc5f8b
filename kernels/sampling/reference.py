"""sampling on the host: logarithms in torch, whose bits they are, the rest in numpy, whose calls
cost a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling.philox import HALF, Words, philox_rounds, words_of

TEXT_STREAM = 0
CODEBOOK_STREAM = 1
"""Codebook q draws from stream CODEBOOK_STREAM + q."""

SORT_LIMIT = 4096
"""Up to this vocabulary a whole stable sort is quicker than selecting by key."""


@dataclass(frozen=True)
class SamplingParams:
    """How each of B rows draws.

    temperature [B] fp32   0 or less: the most likely id
    top_k       [B] int64  candidates kept; below 1 counts as 1, above V as V
    seed        [B] int64  Philox key of the session, all 64 bits
    step        [B] int64  which draw of its stream this is, not negative
    stream      what is drawn: TEXT_STREAM, or CODEBOOK_STREAM + q
    """

    temperature: Tensor
    top_k: Tensor
    seed: Tensor
    step: Tensor
    stream: int

    @cached_property
    def host(self) -> HostParams:
        """In numpy, for every draw that is made from these; shares memory."""
        seed, step = words_of(self.seed), words_of(self.step)
        return HostParams(self.temperature.numpy(), self.top_k.numpy(), seed, step)


class HostParams(NamedTuple):
    """`SamplingParams` in numpy: the bits of seed and step as unsigned numbers."""

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    seed: Words
    step: Words


def uniform(words: Words) -> NDArray[np.float32]:
    """u = ((word >> 9) + 0.5) * 2**-23 in fp32: every operation exact, from 2**-24 to 1 - 2**-24.

    words 0 to 2**32 - 1.
    """
    u = (words >> np.uint64(9)).astype(np.float32)
    u *= np.float32(2.0**-23)
    u += np.float32(2.0**-24)
    return u


def gumbel_noise(seed: Words, step: Words, stream: Words, index: Words) -> NDArray[np.float32]:
    """-log(-log(u)), u from word 0 of Philox4x32-10 under key (seed low, seed high) and counter
    (step low, stream, index, step high): DESIGN 2, whose last word 0 is the high half of the step.

    Arguments broadcast together; seed needs only be as large as it differs. Returns fp32.
    """
    even, _ = philox_rounds((step, stream, index, step >> HALF), np.stack((seed, seed >> HALF)))
    noise = uniform(even[0])
    shared = torch.from_numpy(noise)  # the logarithm is torch's: numpy's has other bits
    for _ in range(2):
        shared.log_()
        np.negative(noise, noise)
    return noise


def top_candidates(
    scores: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `count` largest of each row with their ids, largest first, ties to the lower id.

    scores [B, V] -> values [B, count], ids [B, count].
    """
    rows, size = scores.shape
    if size <= SORT_LIMIT:
        ids = np.argsort(-scores, -1, "stable")[:, :count]
    else:
        # Keys that order like (score, -id) and never tie: torch.topk itself breaks ties at will.
        bits = (scores + np.float32(0)).view(np.int32)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        keys = ordered.astype(np.int64) * 2**32 + np.arange(size - 1, -1, -1)
        ids = torch.from_numpy(keys).topk(count, dim=-1).indices.numpy()
    return scores[np.arange(rows)[:, None], ids], ids


def core(logits: Tensor, params: SamplingParams, noise: Tensor | None = None) -> Tensor:
    """logits [B, V] fp32 -> ids [B] int64. noise: see `draw`."""
    scores = (logits.detach() if logits.requires_grad else logits).numpy()
    return torch.from_numpy(draw(scores, params, None if noise is None else noise.numpy()))


def draw(
    scores: NDArray[np.float32],
    params: SamplingParams,
    noise: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """scores [B, V] -> ids [B].

    noise: gumbel_noise of every id, [B, V], where the caller drew it for many steps at once.
    """
    temperature = params.host.temperature
    best = np.maximum.reduce(scores, -1)
    hot = temperature > 0
    if not hot.any():
        ids = scores.argmax(-1)
    else:
        # A row that is not finite draws a NaN, and 0 below.
        with np.errstate(all="ignore"):
            ids = _perturbed(scores, best, params, noise, None if hot.all() else hot[:, None])
    finite = np.isfinite(best)
    return ids if finite.all() else np.where(finite, ids, 0)


def _perturbed(
    scores: NDArray[np.float32],
    best: NDArray[np.float32],
    params: SamplingParams,
    noise: NDArray[np.float32] | None,
    hot: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """hot [B, 1]: the rows that are not greedy, None when all are."""
    rows, size = scores.shape
    top_k = np.minimum(np.maximum(params.host.top_k, 1), size)
    count = int(top_k.max())
    values, ids = top_candidates(scores, count)
    if noise is None:
        seed, step = params.host.seed[:, None], params.host.step[:, None]
        drawn = gumbel_noise(seed, step, np.array(params.stream, np.uint64), ids.view(np.uint64))
    else:
        drawn = noise[np.arange(rows)[:, None], ids]
    temperature = params.host.temperature[:, None]
    if hot is not None:
        drawn = np.where(hot, drawn, np.float32(0))
        temperature = np.where(hot, temperature, np.float32(1))
    perturbed = (values - best[:, None]) / temperature + drawn
    if int(top_k.min()) < count:
        perturbed[np.arange(count) >= top_k[:, None]] = -np.inf
    winners = perturbed == np.maximum.reduce(perturbed, -1, keepdims=True)
    return np.minimum.reduce(np.where(winners, ids, size), -1)  # type: ignore[no-any-return]


def sampling_reference(
    x: Tensor,
    weights: SamplingParams,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `sampling`."""
    if x.shape[0] == 0:
        ids = torch.zeros(0, dtype=torch.int64, device=x.device)
    else:
        ids = core(x, weights)
    if rows is not None and rows.line_length is None:
        kept = torch.zeros_like(ids)
        kept[rows.run_rows] = ids[rows.run_rows]
        ids = kept
    return ids if out is None else out.copy_(ids)
