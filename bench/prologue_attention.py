"""Attention as a layer runs it: the prologue of q, k, v and r, which writes the rows' keys and
values, then the attend.

A composition (see `microturn.bench.subjects`) of `qkvr_prologue` and `streaming_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microturn.kernels.qkvr_prologue import QKVRState, QKVRWeights, qkvr_prologue
from microturn.kernels.qkvr_prologue import cases as prologue
from microturn.kernels.qkvr_prologue.reference import qkvr_prologue_reference
from microturn.kernels.registry import Bar, OpInputs
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention import AttentionWeights, streaming_attention
from microturn.kernels.streaming_attention import cases as attention
from microturn.kernels.streaming_attention.reference import streaming_attention_reference

DTYPES = ("bf16", "fp8")


@dataclass(frozen=True)
class PrologueAttentionCase:
    """`count` rows of each of `sessions` at the end of `context` positions of a global layer."""

    sessions: int
    context: int
    count: int
    H: int
    Hkv: int
    D: int
    extent: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return self.attend.id

    @property
    def _lines(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.count,) * self.sessions, (self.context - self.count,) * self.sessions

    @property
    def attend(self) -> attention.AttentionCase:
        return attention.AttentionCase(
            *self._lines,
            self.H,
            self.Hkv,
            self.D,
            self.context,
            self.reason,
            kind="pages",
            extent=self.extent,
            log_floor=128_000,
        )

    @property
    def prologue(self) -> prologue.QKVRCase:
        return prologue.QKVRCase(
            *self._lines, self.H, self.Hkv, self.D, self.reason, self.context, "pages"
        )

    @property
    def flops(self) -> int:
        return self.prologue.flops + self.attend.flops

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Of both, but for the rows' q, k and v, which the one hands to the other: in the L2."""
        rows = self.sessions * self.count
        q, kv = rows * self.H * self.D, 2 * rows * self.Hkv * self.D
        both = self.prologue.bytes(itemsize, streamed) + self.attend.bytes(itemsize, streamed)
        return both - (2 * q + kv) * itemsize - 2 * kv * (streamed or itemsize)


CASES = (
    PrologueAttentionCase(1, 300, 1, 4, 2, 64, 128, "a row of interaction-tiny"),
    PrologueAttentionCase(3, 140, 2, 4, 2, 32, 64, "three sessions"),
)
BENCH_CASES = (
    PrologueAttentionCase(
        1,
        1024,
        1,
        32,
        8,
        128,
        1024,
        "the shortest context that is not all latency",
        Bar(us=8.5, fp8=Bar(us=8.5)),
    ),
    PrologueAttentionCase(64, 8192, 1, 32, 8, 128, 1024, "2.1 GB, a full machine"),
)


@dataclass(frozen=True)
class PrologueAttentionWeights:
    """Of both ops."""

    prologue: QKVRWeights
    attend: AttentionWeights


def make_inputs(
    case: PrologueAttentionCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """The prologue's, over arenas that hold the keys and values of the positions before."""
    x, weights, state, rows = prologue.make_inputs(
        case.prologue, seed=seed, dtype=dtype, device=device
    )
    _, attend, kv, _ = attention.make_inputs(case.attend, seed=seed, dtype=dtype, device=device)
    both = PrologueAttentionWeights(weights, attend)
    return OpInputs(x, both, QKVRState(kv, state.conv), rows)


def run(x: Tensor, weights: PrologueAttentionWeights, state: QKVRState, rows: RowBatch) -> Tensor:
    """x [T, q + k + v + r] -> [T, H, D]."""
    inputs = qkvr_prologue(x, weights.prologue, state, rows)
    return streaming_attention(inputs, weights.attend, state.kv, rows)


def reference(
    x: Tensor, weights: PrologueAttentionWeights, state: QKVRState, rows: RowBatch
) -> Tensor:
    """The same through the ops' references."""
    inputs = qkvr_prologue_reference(x, weights.prologue, state, rows)
    return streaming_attention_reference(inputs, weights.attend, state.kv, rows)
