"""The ops of a pass through the trunk, and of the vision tower. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Literal

from microturn.kernels.conv_residual_norm.cases import ConvResidualNormCase
from microturn.kernels.grouped_experts.cases import GroupedExpertsCase
from microturn.kernels.linear.cases import LinearCase
from microturn.kernels.qkvr_prologue.cases import QKVRCase
from microturn.kernels.registry import Case
from microturn.kernels.rms_norm.cases import RMSNormCase
from microturn.kernels.router.cases import RouterCase
from microturn.kernels.streaming_attention.cases import AttentionCase

if TYPE_CHECKING:
    from microturn.model.inkling.config import TrunkConfig
    from microturn.model.inkling.vision import VisionConfig

DENSE_BLOCK = 2048
"""A dense MLP of a multiple of this width is cut into blocks of it."""


def trunk_calls(
    config: TrunkConfig, counts: Sequence[int], starts: Sequence[int], reason: str
) -> Iterator[tuple[str, Case]]:
    """Every op of one pass over lines of `counts[b]` rows from position `starts[b]` on."""
    lines, at = tuple(counts), tuple(starts)
    rows, hidden, most = sum(lines), config.hidden_size, config.max_rows_per_tick
    yield "rms_norm", RMSNormCase(rows, 1, hidden, reason)
    end = ConvResidualNormCase(lines, at, hidden, reason, config.conv_kernel, most)
    for layer in range(config.num_layers):
        sizes = config.attention(layer)
        heads, kv_heads, width = sizes.num_heads, sizes.num_kv_heads, sizes.head_dim
        kind: Literal["pages", "ring"] = "pages" if sizes.pages else "ring"
        qkvr = heads * (width + config.d_rel) + 2 * kv_heads * width
        yield "linear", LinearCase(rows, qkvr, hidden, reason)
        yield (
            "qkvr_prologue",
            QKVRCase(
                lines,
                at,
                heads,
                kv_heads,
                width,
                reason,
                window=sizes.window,
                kind=kind,
                d_rel=config.d_rel,
                K=config.conv_kernel,
                max_rows=most,
            ),
        )
        yield (
            "streaming_attention",
            AttentionCase(
                lines,
                at,
                heads,
                kv_heads,
                width,
                sizes.window,
                reason,
                kind=kind,
                extent=sizes.extent,
                d_rel=config.d_rel,
                log_floor=sizes.log_floor or 0,
                sinks=sizes.num_sink_tokens,
                max_rows=most,
                append=False,
            ),
        )
        yield "linear", LinearCase(rows, hidden, heads * width, reason)
        yield "conv_residual_norm", end
        if layer < config.num_dense_layers:
            whole = config.dense_width
            block = DENSE_BLOCK if whole % DENSE_BLOCK == 0 else whole
            experts = GroupedExpertsCase(rows, hidden, block, 0, 0, whole // block, reason)
        else:
            E, A, shared = config.num_experts, config.top_k, config.num_shared_experts
            yield "router", RouterCase(rows, hidden, E, A, shared, reason)
            experts = GroupedExpertsCase(rows, hidden, config.expert_width, E, A, shared, reason)
        yield "grouped_experts", experts
        yield "conv_residual_norm", end


def vision_calls(
    config: VisionConfig, hidden_size: int, patches: int, reason: str
) -> Iterator[tuple[str, Case]]:
    """Every op of the tower over so many patches."""
    frames, edge, _, channels = config.patch
    cells, width = frames * edge * edge, channels
    folds = zip(config.temporal_folds, config.spatial_folds, strict=True)
    for (t, s), out in zip(folds, (*config.widths, hidden_size), strict=True):
        joined = prod((t, s, s))
        cells //= joined
        yield "linear", LinearCase(patches * cells, out, joined * width, reason)
        yield "rms_norm", RMSNormCase(patches * cells, 1, out, reason)
        width = out
