"""Codes to audio: quantiser, upsampler, transformer, SEANet decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microturn.kernels.arena import ArenaSpec, Twice
from microturn.kernels.rows import RowBatch
from microturn.kernels.rvq_dequantize import DequantizeWeights, rvq_dequantize
from microturn.kernels.streaming_attention import KVState
from microturn.model.family import ArenaSet
from microturn.model.mimi.config import MimiConfig
from microturn.model.mimi.layers import (
    Conv,
    ConvTranspose,
    Kept,
    ResidualUnit,
    Transformer,
    tail_view,
)

MAX_FRAMES = 16
"""Frames a session may bring to one tick, unless the family says otherwise."""


@dataclass(frozen=True)
class DecoderState:
    """Views of the decoder's arenas; `up` and `units` hold one for each level."""

    upsample: Twice
    transformer: tuple[KVState, ...]
    first: Twice
    up: tuple[Twice, ...]
    units: tuple[Twice, ...]
    last: Twice


class Codebooks(Kept[DequantizeWeights]):
    """The books [Q, size, d] and the projections of the two groups [dim, d] (rvq_dequantize)."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.num_semantic = config.num_semantic
        self.tables = nn.Parameter(
            torch.empty(config.num_codebooks, config.codebook_size, config.codebook_dim)
        )
        self.semantic = nn.Parameter(torch.empty(config.dim, config.codebook_dim))
        self.acoustic = nn.Parameter(torch.empty(config.dim, config.codebook_dim))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Books of unit variance, projections whose sum has unit variance for random codes."""
        books, _, width = self.tables.shape
        with torch.no_grad():
            self.tables.normal_(generator=generator)
            for matrix, group in (
                (self.semantic, self.num_semantic),
                (self.acoustic, books - self.num_semantic),
            ):
                matrix.normal_(0, (2 * group * width) ** -0.5, generator=generator)

    def forward(self, codes: Tensor, rows: RowBatch | None) -> Tensor:
        return rvq_dequantize(codes, self.weights, None, rows)

    def assemble(self) -> DequantizeWeights:
        return DequantizeWeights(self.tables, self.semantic, self.acoustic, self.num_semantic)


class MimiDecoder(nn.Module):
    """Everything that turns codes into audio, and nothing else.

    Fresh parameters are uninitialised: load them, or call `reset_parameters`.
    """

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        self.codebooks = Codebooks(config)
        self.upsample = ConvTranspose(
            config.dim, config.dim, config.resample_stride, depthwise=True, bias=False
        )
        self.transformer = Transformer(config)
        channels = config.n_filters << len(config.ratios)
        self.first = Conv(config.dim, channels, config.kernel_size)
        self.up = nn.ModuleList()
        self.units = nn.ModuleList()
        for ratio in config.ratios:
            self.up.append(ConvTranspose(channels, channels // 2, ratio, elu=True))
            channels //= 2
            self.units.append(ResidualUnit(channels, config))
        self.last = Conv(channels, 1, config.last_kernel_size, elu=True)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Seeded random weights: random codes give audio of an rms around 0.1."""
        for module in (self.codebooks, self.upsample, self.transformer, self.first):
            module.reset_parameters(generator)
        for _, up, unit in self._levels:
            up.reset_parameters(generator)
            unit.reset_parameters(generator)
        self.last.reset_parameters(generator, 0.1)

    @property
    def _levels(self) -> list[tuple[int, ConvTranspose, ResidualUnit]]:
        return list(zip(self.config.ratios, self.up, self.units, strict=True))  # type: ignore[arg-type]

    def arena_specs(self, prefix: str, max_frames: int = MAX_FRAMES) -> Sequence[ArenaSpec]:
        """The decoder's arenas, for ticks of at most `max_frames` frames a session."""
        specs = [
            *self.upsample.arena_specs(f"{prefix}.upsample"),
            *self.transformer.arena_specs(f"{prefix}.transformer", max_frames),
            *self.first.arena_specs(f"{prefix}.first"),
        ]
        for i, (_, up, unit) in enumerate(self._levels):
            specs += [*up.arena_specs(f"{prefix}.up.{i}"), *unit.arena_specs(f"{prefix}.unit.{i}")]
        return (*specs, *self.last.arena_specs(f"{prefix}.last"))

    def bind(self, arenas: ArenaSet, prefix: str) -> DecoderState:
        """The state of `arena_specs(prefix)`; once, not every tick."""
        levels = range(len(self.config.ratios))
        return DecoderState(
            upsample=tail_view(arenas, f"{prefix}.upsample"),
            transformer=self.transformer.bind(arenas, f"{prefix}.transformer"),
            first=tail_view(arenas, f"{prefix}.first"),
            up=tuple(tail_view(arenas, f"{prefix}.up.{i}") for i in levels),
            units=tuple(tail_view(arenas, f"{prefix}.unit.{i}") for i in levels),
            last=tail_view(arenas, f"{prefix}.last"),
        )

    def forward(
        self, codes: Tensor, state: DecoderState | None = None, rows: RowBatch | None = None
    ) -> Tensor:
        """codes [T, q] int64, T frames packed -> audio [T * frame_size] fp32, not clamped.

        q is num_codebooks or less. rows counts frames; lines that do not run give silence. state
        None: whole sequences, differentiable (rows None as well: one).
        Raises ValueError on codes out of range.
        """
        return self.decode_latents(self.codebooks(codes, rows), state, rows)

    def decode_latents(
        self, latents: Tensor, state: DecoderState | None = None, rows: RowBatch | None = None
    ) -> Tensor:
        """latents [T, dim], one for each frame, -> audio [T * frame_size]."""
        if rows is None:
            rows = RowBatch.build([0], [len(latents)], [0], device=latents.device)
        x = self.upsample(latents, state and state.upsample, rows)
        rows = rows.finer(self.config.resample_stride)
        x = self.transformer(x, state and state.transformer, rows)
        x = self.first(x, state and state.first, rows)
        for i, (ratio, up, unit) in enumerate(self._levels):
            x = up(x, state and state.up[i], rows)
            rows = rows.finer(ratio)
            x = unit(x, state and state.units[i], rows)
        audio: Tensor | None = None  # no rounding to the width of the weights at the very end
        if x.dtype != torch.float32 and not torch.is_grad_enabled():
            audio = x.new_empty(x.shape[0], 1, dtype=torch.float32)
        given: Tensor = self.last(x, state and state.last, rows, audio)
        return (given.float() if audio is None else given).reshape(-1)
