"""The ops of a tick of an interaction model, in the order of its tick program. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from microturn.kernels.commit_lines.cases import CommitLinesCase
from microturn.kernels.depth_head.cases import DepthCase
from microturn.kernels.dmel.cases import DMelCase
from microturn.kernels.linear.cases import LinearCase
from microturn.kernels.open_lines.cases import OpenLinesCase
from microturn.kernels.registry import Case
from microturn.kernels.rms_norm.cases import RMSNormCase
from microturn.kernels.sampling.cases import SamplingCase
from microturn.model.cost import OpCall, TickWork
from microturn.model.inkling.cost import trunk_calls, vision_calls
from microturn.model.mimi.cost import decode_calls

if TYPE_CHECKING:
    from microturn.model.interaction.config import InteractionConfig

REASON = "a tick"
TEXT_TOP_K = 25


def window_rows(config: InteractionConfig) -> int:
    """Rows until the longest window is full, sinks beside it: no tick costs more than one after
    them.
    """
    layers = map(config.trunk.attention, range(config.trunk.num_layers))
    return max(layer.window + layer.num_sink_tokens for layer in layers)


def tick_calls(config: InteractionConfig, frames: int, work: TickWork) -> Iterator[OpCall]:
    """Every op of a tick that makes `frames` output positions. Lines that speak are the first
    `work.speaking`.
    """
    trunk, said = config.trunk, work.speaking
    hidden, rows = trunk.hidden_size, sum(work.counts)
    position = max(work.starts, default=0)
    books, lines = config.codec.num_codebooks, len(work.counts)
    opened = OpenLinesCase(work.counts, rows, said, frames, books, REASON)
    yield from _in("open", [("open_lines", opened)])
    embed: list[tuple[str, Case]] = [("dmel", DMelCase(said, frames, position, REASON))] * (
        said > 0
    )
    if work.patches and config.vision is not None:
        embed += vision_calls(config.vision, hidden, work.patches, REASON)
    # Context, what is read back, and audio are normed apart; together they are the rows.
    embed.append(("rms_norm", RMSNormCase(rows, 1, hidden, REASON)))
    yield from _in("embed", embed)
    samples = config.codec.frame_size * frames
    done = CommitLinesCase(lines, said, frames, books, samples, (), REASON)
    yield from _in("append", trunk_calls(trunk, work.counts, work.starts, REASON))
    if not said:
        yield from _in("commit", [("commit_lines", done)])
        return
    ends = [start + count for start, count in zip(work.starts, work.counts, strict=True)][:said]
    for j in range(frames):
        yield from _in(f"heads.{j}", _heads(config, said))
        if j < frames - 1:
            one, at = [1] * said, [end + j for end in ends]
            yield from _in(f"decode.{j + 1}", trunk_calls(trunk, one, at, REASON))
    # A tick's rows are twice its frames: half of them are read, half of them made.
    latents = config.codec.resample_stride * position // 2
    yield from _in("codec", decode_calls(config.codec, said, frames, latents, REASON))
    yield from _in("commit", [("commit_lines", done)])


def _heads(config: InteractionConfig, lines: int) -> Iterator[tuple[str, Case]]:
    """Text and codes of one output position."""
    trunk, d = config.trunk, config.depth
    yield "linear", LinearCase(lines, trunk.vocab_size, trunk.hidden_size, REASON)
    yield "sampling", SamplingCase(lines, trunk.unpadded_vocab_size, TEXT_TOP_K, 70, REASON)
    yield (
        "depth_head",
        DepthCase(
            lines,
            d.hidden_size,
            d.depth_size,
            d.num_layers,
            d.num_heads,
            d.gate_size,
            d.num_codebooks,
            d.codebook_size,
            REASON,
        ),
    )


def _in(part: str, calls: Iterable[tuple[str, Case]]) -> Iterator[OpCall]:
    return (OpCall(part, op, case) for op, case in calls)
