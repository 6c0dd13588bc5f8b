"""The floor that ticks on a GPU are held against."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from microturn.bench.gpu_tick import Subject, floor_ms
from microturn.kernels.depth_head.cases import DepthCase
from microturn.kernels.grouped_experts.cases import GroupedExpertsCase
from microturn.kernels.linear.cases import LinearCase
from microturn.kernels.streaming_attention.cases import AttentionCase
from microturn.model.cost import OpCall

LINEAR = LinearCase(4, 512, 256, "")
EXPERTS = GroupedExpertsCase(4, 256, 128, 16, 2, 1, "")
ATTENTION = AttentionCase((1,) * 4, (600,) * 4, 4, 2, 64, 512, "")
DEPTH = DepthCase(4, 256, 128, 2, 4, 352, 4, 256, "")
CALLS = (
    OpCall("embed", "linear", LINEAR),
    OpCall("append", "linear", LINEAR),
    OpCall("append", "streaming_attention", ATTENTION),
    OpCall("append", "grouped_experts", EXPERTS),
    OpCall("heads.0", "depth_head", DEPTH),
)


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_a_floor_counts_every_value_as_wide_as_it_is_kept(dtype: str) -> None:
    """Under fp8 8 bits for matrices of the trunk; not for vision, keys, values, the depth head."""
    family: Any = SimpleNamespace(
        window_rows=512, calls=lambda work: CALLS, shape=SimpleNamespace(frames=2)
    )
    streamed = 1 if dtype == "fp8" else 2
    trunk = LINEAR.bytes(2, streamed) + EXPERTS.bytes(2, streamed)
    rest = LINEAR.bytes(2) + ATTENTION.bytes(2) + DEPTH.bytes(2)
    assert ATTENTION.bytes(2, 1) < ATTENTION.bytes(2)
    found = floor_ms(family, Subject("any", 1, dtype, 4), 4000.0, 0)
    assert found == pytest.approx((trunk + rest) / 4e9)
