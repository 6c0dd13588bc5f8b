"""Shapes of depth_head, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DepthCase:
    """B rows from trunk width H through L layers of width D and gate G to Q codebooks of V."""

    B: int
    H: int
    D: int
    L: int
    heads: int
    G: int
    Q: int
    V: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return (
            f"B={self.B},H={self.H},D={self.D},L={self.L},heads={self.heads},"
            f"G={self.G},Q={self.Q},V={self.V}"
        )

    @property
    def _products(self) -> int:
        """Matrix values one frame passes through."""
        layer = 4 * self.D * self.D + 3 * self.D * self.G
        return self.Q * (self.D * self.H + self.L * layer + self.V * self.D)

    @property
    def flops(self) -> int:
        pairs = self.Q * (self.Q + 1) // 2
        return 2 * self.B * (self._products + 2 * pairs * self.L * self.D)

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        gains = 2 * self.L * self.D
        looked_up = self.B * self.Q * self.D
        inputs = self.B * (self.H * itemsize + 4 + 4 * 8)
        outputs = self.B * (8 * self.Q + 1)
        return (self._products + gains + looked_up) * itemsize + inputs + outputs


CASES = (
    DepthCase(0, 32, 32, 1, 2, 48, 2, 16, "no rows"),
    DepthCase(1, 256, 128, 2, 4, 352, 4, 256, "one session of interaction-tiny"),
    DepthCase(3, 64, 32, 2, 2, 48, 1, 32, "a single codebook: no step looks back"),
    DepthCase(11, 48, 64, 1, 4, 80, 3, 37, "prime rows over a tile, odd codebook size"),
    DepthCase(33, 32, 32, 1, 2, 48, 2, 16, "a row over a tile of the largest configuration"),
    DepthCase(2, 32, 32, 1, 2, 32, 16, 16, "the most steps a frame has: PersonaPlex"),
)

NARROW_LOADS = {
    "depth_head_frame.qkv_ptr": "q of a few heads, of this launch, in the L2; k and v come wide"
}
BENCH_CASES = (
    DepthCase(
        1, 4096, 1024, 6, 16, 2816, 8, 2048, "interaction-small; Moshi", Bar(us=750, times_peer=3)
    ),
    DepthCase(64, 4096, 1024, 6, 16, 2816, 8, 2048, "its 64 sessions", Bar(us=900, times_peer=3)),
    DepthCase(8, 4096, 1024, 6, 16, 2816, 8, 2048, "8 sessions"),
    DepthCase(1, 1536, 1024, 6, 16, 2816, 8, 2048, "interaction-mini"),
    DepthCase(1, 4096, 1024, 6, 16, 2816, 16, 2048, "PersonaPlex, all 16 steps"),
)


def make_inputs(
    case: DepthCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs and weights of the case's shape; dtype fp32 unless given.

    In a narrow dtype the heads are 64 times smaller: codes are compared exactly, so a rounding of
    the logits must not decide a draw. `tests/kernels/test_depth_head_kernel.py` compares logits.
    """
    import torch

    from microturn.kernels.depth_head.reference import DepthInputs
    from microturn.kernels.depth_head.weights import DepthWeights
    from microturn.kernels.draw import Draw
    from microturn.kernels.sampling.reference import CODEBOOK_STREAM, SamplingParams

    draw = Draw(seed, dtype, device)
    text_ids = 40
    narrow = 1.0 if draw.dtype == torch.float32 else 1 / 64

    def matrix(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return draw.normal(*shape, scale=scale * shape[-1] ** -0.5)

    def gain(*shape: int) -> torch.Tensor:
        return 1 + draw.normal(*shape, scale=0.1)

    c = case
    weights = DepthWeights(
        hidden_in=matrix(c.Q, c.D, c.H),
        text_table=draw.normal(text_ids, c.D),
        code_tables=draw.normal(c.Q - 1, c.V, c.D),
        attention_gain=gain(c.L, c.D),
        qkv=matrix(c.L, c.Q, 3 * c.D, c.D),
        out=matrix(c.L, c.Q, c.D, c.D),
        mlp_gain=gain(c.L, c.D),
        gate_up=matrix(c.L, c.Q, 2 * c.G, c.D),
        down=matrix(c.L, c.Q, c.D, c.G),
        heads=matrix(c.Q, c.V, c.D, scale=narrow),
        num_heads=c.heads,
        eps=1e-8,
    )
    params = SamplingParams(
        torch.full((c.B,), 0.8, device=device),
        torch.full((c.B,), 250, device=device),
        draw.integers(-(2**63), 2**63 - 1, (c.B,)),
        draw.integers(0, 100_000, (c.B,)),
        CODEBOOK_STREAM,
    )
    ids = draw.integers(0, text_ids, (c.B,))
    return OpInputs(DepthInputs(draw.normal(c.B, c.H), ids, params), weights, None, None)
