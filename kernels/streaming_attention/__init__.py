"""Grouped-query attention over a window of a stream, with an optional relative bias."""

from microturn.kernels.streaming_attention.op import streaming_attention
from microturn.kernels.streaming_attention.reference import (
    AttentionInputs,
    AttentionWeights,
    KVState,
    kv_specs,
)

__all__ = ["AttentionInputs", "AttentionWeights", "KVState", "kv_specs", "streaming_attention"]
