"""Kernels by others, measured by others on Hopper, and what the model of `bench.predict` says of
them: how far it can be believed.

Bytes and flops are those that such a call must move and do; rows of experts are routed uniformly.
Their tiles and registers are not known, so they are taken as full machines without padding: the
model is then at its most flattering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from microturn.bench import predict


@dataclass(frozen=True)
class Published:
    """us: as measured by the source; launches: of the call; of_read: the card's memory, of an
    H200's.
    """

    what: str
    source: str
    us: float
    nbytes: float
    launches: int
    flops: float = 0.0
    of_read: float = 1.0

    def predicted_us(self, attained: predict.Attained) -> float:
        """By the model."""
        fixed = self.launches * (predict.BOUNDARY_US + predict.LATENCY_US)
        stream = self.nbytes / (predict.READ_TBPS * self.of_read * attained.read) / 1e6
        return fixed + max(stream, self.flops / (predict.BF16_TFLOPS * attained.loop) / 1e6)


def _experts(num: int, top_k: int, hidden: int, inner: int, rows: int) -> float:
    """bf16: weights of the experts hit, and what passes between two products and their sum."""
    hit = num * (1 - (1 - top_k / num) ** rows)
    passed = rows * top_k * (3 * inner + 2 * hidden)
    return 2 * (hit * 3 * hidden * inner + 2 * rows * hidden + passed)


def _keys(sessions: int, positions: int) -> float:
    """bf16, 8 heads of 128."""
    return sessions * positions * 2 * 8 * 128 * 2.0


PUBLISHED = (
    Published(
        "SGLang Triton fused_moe, T=256, 256 experts", "sglang#34150", 386.9,
        _experts(256, 8, 2048, 512, 256), 5,
    ),
    Published(
        "SGLang Triton fused_moe, T=512, 256 experts", "sglang#34150", 394.2,
        _experts(256, 8, 2048, 512, 512), 5,
    ),
    Published(
        "vLLM Triton fused_moe, T=32, 128 experts", "vllm#44818", 324.9,
        _experts(128, 8, 2816, 704, 32), 5,
    ),
    Published(
        "vLLM Triton fused_moe, T=128, 128 experts", "vllm#44818", 396.4,
        _experts(128, 8, 2816, 704, 128), 5,
    ),
    Published(
        "vLLM Triton fused_moe, T=8, 128 experts", "vllm#44818", 204.0,
        _experts(128, 8, 2816, 704, 8), 5,
    ),
    Published("FA3 decode, 8 x 32k", "vllm#43232", 253.0, _keys(8, 32768), 2),
    Published("FA3 decode, 8 x 16k", "vllm#43232", 133.2, _keys(8, 16384), 2),
    Published("FA3 decode, 8 x 4k", "vllm#43232", 41.6, _keys(8, 4096), 2),
    Published("FA3 decode, 1 x 4k", "vllm#43232", 14.5, _keys(1, 4096), 2),
    Published("FA3 decode, 1 x 1k", "vllm#43232", 11.0, _keys(1, 1024), 2),
    Published("router gate in Triton, 256 experts, T=64", "sglang#25835", 2.51, 64 * 258 * 4, 1),
    Published(
        "Liger fused MoE, T=32768, 128 experts, H100", "Liger-Kernel#1294", 4730.0,
        _experts(128, 8, 2048, 768, 32768), 5, 6.0 * 32768 * 8 * 2048 * 768, 3.35 / 4.8,
    ),
)  # fmt: skip


def as_meta() -> list[dict[str, Any]]:
    """For a document: what was measured beside what the model says at p50."""
    attained = predict.ATTAINED["us_p50"]
    found = []
    for one in PUBLISHED:
        us = one.predicted_us(attained)
        found.append(
            {
                "what": one.what,
                "source": one.source,
                "measured_us": one.us,
                "predicted_us": round(us, 2),
                "predicted_over_measured": round(us / one.us, 3),
            }
        )
    return found
