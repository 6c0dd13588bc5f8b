"""sampling in plain torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling.philox import philox_word

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


def uniform(words: Tensor) -> Tensor:
    """u = ((word >> 9) + 0.5) * 2**-23 in fp32: every operation exact, from 2**-24 to 1 - 2**-24.

    words int64, 0 to 2**32 - 1.
    """
    return torch.add(words.new_full((), 2.0**-24, dtype=torch.float32), words >> 9, alpha=2.0**-23)


def gumbel_noise(seed: Tensor, step: Tensor, stream: Tensor, index: Tensor) -> Tensor:
    """-log(-log(u)), u from word 0 of Philox4x32-10 under key (seed low, seed high) and counter
    (step low, stream, index, step high): DESIGN 2, whose last word 0 is the high half of the step.

    All int64, broadcast together; seed needs only be as large as it differs. Returns fp32.
    """
    key = seed.contiguous().view(torch.int32).view(*seed.shape, 2).movedim(-1, 0)
    word = philox_word((step, stream, index, step >> 32), key)
    return uniform(word).log_().neg_().log_().neg_()


def top_candidates(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row with their ids, largest first, ties to the lower id.

    logits [B, V] fp32 -> values [B, count], ids [B, count] int64.
    """
    size = logits.shape[1]
    if size <= SORT_LIMIT:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values[:, :count], ids[:, :count]
    # Keys that order like (logit, -id) and never tie: torch.topk itself breaks ties at will.
    bits = (logits + 0.0).contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = ordered.long() * 2**32 + torch.arange(size - 1, -1, -1, device=logits.device)
    ids = keys.topk(count, dim=-1).indices
    return logits.gather(1, ids), ids


@cache
@torch.inference_mode(False)
def _stream(stream: int, device: torch.device) -> Tensor:
    return torch.tensor(stream, device=device)


def core(logits: Tensor, params: SamplingParams, noise: Tensor | None = None) -> Tensor:
    """logits [B, V] fp32 -> ids [B] int64.

    noise: gumbel_noise of every id, [B, V], where the caller drew it for many steps at once.
    """
    best = logits.amax(-1)
    greedy = [t <= 0 for t in params.temperature.tolist()]
    ids = logits.argmax(-1) if all(greedy) else _draw(logits, best, params, noise, any(greedy))
    if all(math.isfinite(b) for b in best.tolist()):
        return ids
    return torch.where(best.isfinite(), ids, 0)


def _draw(
    logits: Tensor, best: Tensor, params: SamplingParams, noise: Tensor | None, some_greedy: bool
) -> Tensor:
    size = logits.shape[1]
    top_k = [min(max(k, 1), size) for k in params.top_k.tolist()]
    count = max(top_k)
    values, ids = top_candidates(logits, count)
    if noise is None:
        stream = _stream(params.stream, logits.device)
        drawn = gumbel_noise(params.seed[:, None], params.step[:, None], stream, ids)
    else:
        drawn = noise.gather(1, ids)
    temperature = params.temperature[:, None]
    if some_greedy:
        hot = temperature > 0
        drawn = torch.where(hot, drawn, 0.0)
        temperature = torch.where(hot, temperature, 1.0)
    perturbed = (values - best[:, None]) / temperature + drawn
    if min(top_k) < count:
        beyond = torch.arange(count, device=ids.device) >= params.top_k.clamp(min=1)[:, None]
        perturbed = perturbed.masked_fill_(beyond, float("-inf"))
    winners = perturbed == perturbed.amax(-1, keepdim=True)
    return torch.where(winners, ids, size).amin(-1)


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
    if rows is not None:
        kept = torch.zeros_like(ids)
        kept[rows.run_rows] = ids[rows.run_rows]
        ids = kept
    return ids if out is None else out.copy_(ids)
