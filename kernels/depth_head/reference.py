"""depth_head in plain torch: one step function, driven by given codes (`core`) or by its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from microturn.kernels.depth_head.weights import DepthWeights, Step
from microturn.kernels.rms_norm.reference import core as rms_norm
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling.reference import (
    CODEBOOK_STREAM,
    SamplingParams,
    draw,
    gumbel_noise,
)
from microturn.kernels.tiles import TILE_ROWS, matmul_rows, round_up

Past = list[tuple[Tensor, Tensor]]
"""A layer's keys [R, heads, steps, D / heads] and values [R, heads, D / heads, steps]."""


@dataclass(frozen=True)
class DepthInputs:
    """hidden [B, H] fp32, text_ids [B] int64, and how the codes are drawn.

    The stream of `sampling` is not read: codebook q draws from CODEBOOK_STREAM + q.
    """

    hidden: Tensor
    text_ids: Tensor
    sampling: SamplingParams

    def take(self, rows: Tensor) -> DepthInputs:
        """The rows of those indices."""
        s = self.sampling
        params = SamplingParams(
            s.temperature[rows], s.top_k[rows], s.seed[rows], s.step[rows], s.stream
        )
        return DepthInputs(self.hidden[rows], self.text_ids[rows], params)


@dataclass(frozen=True)
class DepthOutputs:
    """codes [B, Q] int64; finite [B] bool, whether every logit of the row was."""

    codes: Tensor
    finite: Tensor


def _silu(x: Tensor) -> Tensor:
    """x * sigmoid(x). torch's own rounds differently in the tail of a buffer, exp does not."""
    if torch.is_grad_enabled() and x.requires_grad:
        return F.silu(x)
    return x / torch.exp(-x).add_(1.0)


def _attend(
    q: Tensor, keys: Tensor, v: Tensor, past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One query a row [R, heads, 1, d] over every step so far; sums over the last axis only."""
    values = v.mT
    if past is None:
        return v, (keys, values)
    keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 3)
    scores = (q * keys).sum(-1) * q.shape[-1] ** -0.5
    share = scores.softmax(-1)
    return (share[:, :, None] * values).sum(-1), (keys, values)


def _step(x: Tensor, past: Past, step: Step, num_heads: int) -> Tensor:
    """x [R, D] -> logits [R, V]; `past` grows by this step."""
    rows, width = x.shape
    for i, layer in enumerate(step.layers):
        qkv = matmul_rows(rms_norm(x, layer.attention_norm), layer.qkv)
        q, k, v = qkv.view(rows, 3, num_heads, 1, width // num_heads).unbind(1)
        attended, grown = _attend(q, k, v, past[i] if i < len(past) else None)
        past[i : i + 1] = [grown]
        x = x + matmul_rows(attended.reshape(rows, width), layer.out)
        gate, up = matmul_rows(rms_norm(x, layer.mlp_norm), layer.gate_up).chunk(2, -1)
        x = x + matmul_rows(_silu(gate) * up, layer.down)
    return matmul_rows(x, step.head)


def _hidden_in(hidden: Tensor, weights: DepthWeights) -> tuple[Tensor, ...]:
    """hidden [R, H] -> for each step [R, D]."""
    books, depth, _ = weights.hidden_in.shape
    projected = matmul_rows(hidden, weights.hidden_in.flatten(0, 1))
    return projected.view(-1, books, depth).unbind(1)


def core(hidden: Tensor, text_ids: Tensor, codes: Tensor, weights: DepthWeights) -> Tensor:
    """Teacher-forced: logits of code k given the codes before it.

    hidden [B, H], text_ids [B], codes [B, Q] (the last column is not read) -> [B, Q, V].
    """
    past: Past = []
    ids = (text_ids, *codes.unbind(1))
    logits = [
        _step(base + F.embedding(ids[k], step.table), past, step, weights.num_heads)
        for k, (base, step) in enumerate(
            zip(_hidden_in(hidden, weights), weights.steps, strict=True)
        )
    ]
    return torch.stack(logits, 1)


def _generate(x: DepthInputs, weights: DepthWeights) -> DepthOutputs:
    """Rows are padded to whole tiles once, so that no product of a step has to."""
    batch = x.hidden.shape[0]
    padded = round_up(batch, TILE_ROWS)
    noise = _noise(x.sampling, weights)
    past: Past = []
    drawn = np.zeros(padded, np.int64)
    drawn[:batch] = x.text_ids.tolist()
    ids = torch.from_numpy(drawn)
    codes = np.empty((batch, weights.num_codebooks), np.int64)
    finite = np.ones(batch, np.bool_)
    bases = _hidden_in(F.pad(x.hidden, (0, 0, 0, padded - batch)), weights)
    for k, (base, step) in enumerate(zip(bases, weights.steps, strict=True)):
        scores = _step(base + F.embedding(ids, step.table), past, step, weights.num_heads)
        if scores.dtype != torch.float32 or scores.requires_grad:
            scores = scores.detach().float()
        host = scores.numpy()[:batch]
        drawn[:batch] = codes[:, k] = draw(host, x.sampling, None if noise is None else noise[k])
        finite &= np.isfinite(host).all(-1)
    return DepthOutputs(torch.from_numpy(codes), torch.from_numpy(finite))


def _noise(params: SamplingParams, weights: DepthWeights) -> NDArray[np.float32] | None:
    """For each codebook the Gumbel noise of every code [Q, B, V], drawn in one go: the calls of a
    draw cost more than its numbers. None when every row takes its most likely code.
    """
    if not (params.host.temperature > 0).any():
        return None
    streams = np.arange(CODEBOOK_STREAM, CODEBOOK_STREAM + weights.num_codebooks, dtype=np.uint64)
    codes = np.arange(weights.codebook_size, dtype=np.uint64)
    seed, step = params.host.seed[:, None], params.host.step[:, None]
    return gumbel_noise(seed, step, streams[:, None, None], codes)


def depth_head_reference(
    x: DepthInputs,
    weights: DepthWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: DepthOutputs | None = None,
) -> DepthOutputs:
    """See `depth_head`."""
    batch = x.hidden.shape[0]
    run = None if rows is None or rows.line_length is not None else rows.run_rows
    if run is not None:
        x = x.take(run)
    if x.hidden.shape[0] and (run is None or run.shape[0] == batch):
        made = _generate(x, weights)
    else:
        codes = x.text_ids.new_zeros(batch, weights.num_codebooks)
        made = DepthOutputs(codes, torch.ones_like(codes[:, 0], dtype=torch.bool))
        if run is not None and run.shape[0]:
            some = _generate(x, weights)
            made.codes[run] = some.codes
            made.finite[run] = some.finite
    if out is None:
        return made
    return DepthOutputs(out.codes.copy_(made.codes), out.finite.copy_(made.finite))
