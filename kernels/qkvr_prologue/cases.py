"""Shapes of qkvr_prologue, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QKVRCase:
    """Lines of `counts[b]` rows from position `starts[b]` on; lines of `idle` do not run."""

    counts: tuple[int, ...]
    starts: tuple[int, ...]
    H: int
    Hkv: int
    D: int
    reason: str
    window: int = 512
    kind: Literal["ring", "pages"] = "ring"
    d_rel: int = 16
    K: int = 4
    max_rows: int = 64
    idle: tuple[int, ...] = ()
    bar: Bar | None = None

    @property
    def T(self) -> int:
        return sum(self.counts)

    @property
    def id(self) -> str:
        position = max(self.starts, default=0)
        return (
            f"B={len(self.counts)},T={self.T},H={self.H},Hkv={self.Hkv},D={self.D},"
            f"d_rel={self.d_rel},window={self.window},pos={position},kind={self.kind}"
        )

    @property
    def flops(self) -> int:
        conv = (2 * self.K + 1) * 2 * self.Hkv * self.D
        return self.T * (conv + 4 * (self.H + self.Hkv) * self.D)

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """x but for r (handed on as it stands), q, the ring's new rows and old taps, the weights;
        keys and values at `streamed`.
        """
        q, kv = self.H * self.D, 2 * self.Hkv * self.D
        old = sum(min(self.K - 1, start) for start in self.starts)
        plain = self.T * 2 * (q + kv) + (old + self.K) * kv + 2 * self.D
        return plain * itemsize + self.T * kv * (streamed or itemsize)


CASES = (
    QKVRCase((), (), 4, 2, 64, "no rows"),
    QKVRCase((1,), (0,), 4, 2, 64, "a session's first row: three taps do not exist"),
    QKVRCase((3,), (20_000,), 4, 2, 64, "a tick of interaction-tiny, sliding layer"),
    QKVRCase(
        (3,), (128_001,), 4, 2, 64, "the same, global layer: pages", window=2048, kind="pages"
    ),
    QKVRCase((5, 1, 3), (2, 127, 0), 6, 3, 48, "rows out of step, widths no power of two"),
    QKVRCase((7,), (636,), 2, 2, 32, "the ring wraps within the line; no r", d_rel=0),
    QKVRCase(
        (2, 3, 2),
        (126, 5, 9),
        2,
        1,
        128,
        "a page begun within the tick, one line paused",
        window=300,
        kind="pages",
        idle=(1,),
    ),
    QKVRCase((2,), (9_000,), 18, 9, 128, "one head over a program's eight"),
)

DTYPES = ("bf16", "fp8")
BENCH_CASES = (
    *(
        QKVRCase((n,) * b, (9_000,) * b, 32, 8, 128, "interaction-small, sliding layer")
        for b, n in ((1, 1), (1, 3), (16, 1), (64, 1), (64, 3), (4, 64))
    ),
    *(
        QKVRCase(
            (n,) * b,
            (9_000,) * b,
            32,
            8,
            128,
            "interaction-small, global layer",
            window=8192,
            kind="pages",
        )
        for b, n in ((1, 1), (64, 1))
    ),
    QKVRCase((1,) * 64, (9_000,) * 64, 4, 1, 128, "an eighth of interaction-small"),
    QKVRCase((3,), (9_000,), 12, 4, 128, "interaction-mini, a tick of one session"),
)


def make_inputs(
    case: QKVRCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs; line b runs in slot b of arenas that hold NaN wherever nothing was. FP8:
    keys and values are kept in 8 bits.
    """
    import torch

    from microturn.kernels.draw import Draw
    from microturn.kernels.qkvr_prologue.reference import QKVRState, QKVRWeights
    from microturn.kernels.rms_norm.reference import RMSNormWeights
    from microturn.kernels.rows import RowBatch
    from microturn.kernels.short_conv.cases import make_ring
    from microturn.kernels.streaming_attention.cases import empty_kv

    draw = Draw(seed, dtype, device)
    num_slots = len(case.counts) + 1
    q_gain, k_gain = (
        RMSNormWeights(2 + draw.normal(case.D, scale=0.2, dtype=torch.float32), 1e-6)
        for _ in range(2)
    )
    taps = draw.normal(2 * case.Hkv * case.D, case.K, scale=case.K**-0.5)
    weights = QKVRWeights(taps, q_gain, k_gain, case.H, case.Hkv, case.d_rel)
    x = draw.normal(case.T, sum(weights.widths))

    kv = empty_kv(draw, num_slots, case.kind, case.window, case.max_rows, case.Hkv, case.D)
    conv = make_ring(draw, taps.shape[0], case.K, case.max_rows, case.starts)
    lines = range(len(case.counts))
    run = [line not in case.idle for line in lines]
    rows = RowBatch.build(lines, case.counts, case.starts, exec_mask=run, device=device)
    return OpInputs(x, weights, QKVRState(kv, conv), rows)
