"""Audio to codes: SEANet encoder, transformer, downsampler, quantiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microturn.kernels.arena import ArenaSpec, Twice
from microturn.kernels.kept import stamp
from microturn.kernels.rows import RowBatch
from microturn.kernels.rvq_quantize import QuantizeWeights, rvq_quantize
from microturn.kernels.rvq_quantize.reference import half_norms
from microturn.kernels.streaming_attention import KVState
from microturn.model.family import ArenaSet
from microturn.model.mimi.config import MimiConfig
from microturn.model.mimi.decoder import MAX_FRAMES
from microturn.model.mimi.layers import Conv, ResidualUnit, Transformer, tail_view


@dataclass(frozen=True)
class EncoderState:
    """Views of the encoder's arenas; `units` and `down` hold one for each level."""

    first: Twice
    units: tuple[Twice, ...]
    down: tuple[Twice, ...]
    last: Twice
    transformer: tuple[KVState, ...]
    downsample: Twice


class MimiEncoder(nn.Module):
    """Everything that turns audio into codes but the books, which the decoder holds.

    semantic, acoustic [codebook_dim, dim]: the projections of the two groups into the books' space.
    Fresh parameters are uninitialised: load them, or call `reset_parameters`.
    """

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.n_filters
        self.first = Conv(1, channels, config.kernel_size)
        self.units = nn.ModuleList()
        self.down = nn.ModuleList()
        for ratio in reversed(config.ratios):
            self.units.append(ResidualUnit(channels, config))
            self.down.append(Conv(channels, 2 * channels, 2 * ratio, stride=ratio, elu=True))
            channels *= 2
        self.last = Conv(channels, config.dim, config.last_kernel_size, elu=True)
        self.transformer = Transformer(config)
        stride = config.resample_stride
        self.downsample = Conv(
            config.dim, config.dim, 2 * stride, stride=stride, pad="replicate", bias=False
        )
        self.semantic = nn.Parameter(torch.empty(config.codebook_dim, config.dim))
        self.acoustic = nn.Parameter(torch.empty(config.codebook_dim, config.dim))
        self._norms: tuple[tuple[int, int], Tensor] | None = None

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Seeded random weights: audio of rms 0.1 gives vectors as long as the books' rows."""
        self.first.reset_parameters(generator)
        for _, unit, down in self._levels:
            unit.reset_parameters(generator)
            down.reset_parameters(generator)
        for module in (self.last, self.transformer, self.downsample):
            module.reset_parameters(generator)
        with torch.no_grad():
            for matrix in (self.semantic, self.acoustic):
                matrix.normal_(0, 3 * matrix.shape[1] ** -0.5, generator=generator)

    @property
    def _levels(self) -> list[tuple[int, ResidualUnit, Conv]]:
        ratios = reversed(self.config.ratios)
        return list(zip(ratios, self.units, self.down, strict=True))  # type: ignore[arg-type]

    def arena_specs(self, prefix: str, max_frames: int = MAX_FRAMES) -> Sequence[ArenaSpec]:
        """The encoder's arenas, for ticks of at most `max_frames` frames a session."""
        specs = [*self.first.arena_specs(f"{prefix}.first", torch.float32)]
        for i, (_, unit, down) in enumerate(self._levels):
            specs += [
                *unit.arena_specs(f"{prefix}.unit.{i}"),
                *down.arena_specs(f"{prefix}.down.{i}"),
            ]
        return (
            *specs,
            *self.last.arena_specs(f"{prefix}.last"),
            *self.transformer.arena_specs(f"{prefix}.transformer", max_frames),
            *self.downsample.arena_specs(f"{prefix}.downsample"),
        )

    def bind(self, arenas: ArenaSet, prefix: str) -> EncoderState:
        """The state of `arena_specs(prefix)`; once, not every tick."""
        levels = range(len(self.config.ratios))
        return EncoderState(
            first=tail_view(arenas, f"{prefix}.first"),
            units=tuple(tail_view(arenas, f"{prefix}.unit.{i}") for i in levels),
            down=tuple(tail_view(arenas, f"{prefix}.down.{i}") for i in levels),
            last=tail_view(arenas, f"{prefix}.last"),
            transformer=self.transformer.bind(arenas, f"{prefix}.transformer"),
            downsample=tail_view(arenas, f"{prefix}.downsample"),
        )

    def forward(
        self,
        audio: Tensor,
        tables: Tensor,
        state: EncoderState | None = None,
        rows: RowBatch | None = None,
    ) -> Tensor:
        """audio [T * frame_size] fp32, T frames packed, and the books [Q, size, d] -> codes [T, Q]
        int64.

        rows counts frames; lines that do not run give code 0. state None: whole sequences (rows
        None as well: one). Raises ValueError on a part of a frame.
        """
        weights = QuantizeWeights(
            tables, self._half_norms(tables), self.semantic, self.acoustic, self.config.num_semantic
        )
        return rvq_quantize(self.latents(audio, state, rows), weights, None, rows)

    def latents(
        self, audio: Tensor, state: EncoderState | None = None, rows: RowBatch | None = None
    ) -> Tensor:
        """audio [T * frame_size] -> [T, dim], one for each frame, as the quantiser gets them."""
        frame_size = self.config.frame_size
        frames, rest = divmod(len(audio), frame_size)
        if audio.dim() != 1 or rest or (rows is not None and rows.num_rows != frames):
            wanted = f"{rows.num_rows} whole frames" if rows is not None else "whole frames"
            raise ValueError(
                f"audio must be mono [T * {frame_size}], {wanted}, got {list(audio.shape)}"
            )
        if rows is None:
            rows = RowBatch.build([0], [frames], [0], device=audio.device)
        levels = [rows, rows.finer(self.config.resample_stride)]
        for ratio in self.config.ratios:
            levels.append(levels[-1].finer(ratio))
        level = levels.pop()
        x = self.first(audio[:, None], state and state.first, level)
        for i, (_, unit, down) in enumerate(self._levels):
            x = unit(x, state and state.units[i], level)
            x = down(x, state and state.down[i], level)
            level = levels.pop()
        x = self.last(x, state and state.last, level)
        x = self.transformer(x, state and state.transformer, level)
        latents: Tensor = self.downsample(x, state and state.downsample, level)
        return latents

    def _half_norms(self, tables: Tensor) -> Tensor:
        """Kept until the books change."""
        if tables.is_inference():
            return half_norms(tables)
        key = stamp(tables)
        if self._norms is None or self._norms[0] != key:
            self._norms = (key, half_norms(tables.detach()))
        return self._norms[1]
