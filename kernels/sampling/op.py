"""sampling: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.checks import check_dtype, check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling.reference import (
    CODEBOOK_STREAM,
    TEXT_STREAM,
    SamplingParams,
    sampling_reference,
)

__all__ = ["CODEBOOK_STREAM", "TEXT_STREAM", "SamplingParams", "sampling"]


def sampling(
    x: Tensor,
    weights: SamplingParams,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """ids[b] = argmax over the top_k logits of (logit - max) / temperature - log(-log(u)).

    x       logits [B, V] fp32; -inf forbids an id
    weights SamplingParams: temperature, top_k, seed, step (each [B]) and the stream
    state   unused; the signature is the same for every op
    rows    None, or B lines of one row: those that do not run get id 0
    out     [B] int64; allocated when None

    u = ((word >> 9) + 0.5) * 2**-23 in fp32, exact and never 0 or 1; word is the first of
    Philox4x32-10 with key = (seed low, seed high) and counter = (step low, stream, id, step high),
    so a step past 2**32 carries into the fourth word, which is 0 until then. Only candidates are
    drawn for. The top_k takes lower ids first where logits are equal; an equal maximum goes to the
    lower id. Temperature 0 is argmax. A row depends on nothing but itself.

    A row whose largest logit is not finite (NaN anywhere, +inf, or all -inf) gives id 0: the caller
    checks logits and ends that session.

    Source: DESIGN 2 "Randomness"; Gumbel-max, Maddison et al. 2014 (arXiv 1411.0030).
    Raises ValueError on shapes, TypeError on dtypes.
    """
    check_shape("sampling", "logits", x, ("B", "V"))
    check_dtype("sampling", "logits", x, torch.float32)
    if x.shape[1] == 0:
        raise ValueError("sampling: logits must hold at least one id a row, got V = 0")
    check_params("sampling", weights, x.shape[0])
    if rows is not None:
        check_rows("sampling", rows, x.shape[0])
    return pick("sampling", x.device, sampling_reference)(x, weights, state, rows, out=out)


def check_params(op: str, params: SamplingParams, num_rows: int) -> None:
    """Raises ValueError or TypeError, naming the field, unless each has one entry a row."""
    for name in ("temperature", "top_k", "seed", "step"):
        tensor = getattr(params, name)
        check_shape(op, name, tensor, (num_rows,))
        want = torch.float32 if name == "temperature" else torch.int64
        check_dtype(op, name, tensor, want)
