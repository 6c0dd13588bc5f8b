"""Encoder and decoder over the same books."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from microturn.kernels.arena import ArenaSpec
from microturn.kernels.rows import RowBatch
from microturn.model.family import ArenaSet
from microturn.model.mimi.config import MimiConfig
from microturn.model.mimi.decoder import MAX_FRAMES, DecoderState, MimiDecoder
from microturn.model.mimi.encoder import EncoderState, MimiEncoder

__all__ = ["DecoderState", "EncoderState", "Mimi", "MimiDecoder", "MimiEncoder"]


class Mimi(nn.Module):
    """The whole codec. A model that only speaks holds a `MimiDecoder` instead.

    Fresh parameters are uninitialised: load them, or call `reset_parameters`.
    """

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MimiEncoder(config)
        self.decoder = MimiDecoder(config)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Seeded random weights. The decoder's come first: alone it gets the same."""
        self.decoder.reset_parameters(generator)
        self.encoder.reset_parameters(generator)

    def encoder_arena_specs(self, prefix: str, max_frames: int = MAX_FRAMES) -> Sequence[ArenaSpec]:
        return self.encoder.arena_specs(prefix, max_frames)

    def decoder_arena_specs(self, prefix: str, max_frames: int = MAX_FRAMES) -> Sequence[ArenaSpec]:
        return self.decoder.arena_specs(prefix, max_frames)

    def bind_encoder(self, arenas: ArenaSet, prefix: str) -> EncoderState:
        return self.encoder.bind(arenas, prefix)

    def bind_decoder(self, arenas: ArenaSet, prefix: str) -> DecoderState:
        return self.decoder.bind(arenas, prefix)

    def encode(
        self, audio: Tensor, state: EncoderState | None = None, rows: RowBatch | None = None
    ) -> Tensor:
        """audio [T * frame_size] fp32 -> codes [T, Q] int64; see `MimiEncoder.forward`."""
        codes: Tensor = self.encoder(audio, self.decoder.codebooks.tables, state, rows)
        return codes

    def decode(
        self, codes: Tensor, state: DecoderState | None = None, rows: RowBatch | None = None
    ) -> Tensor:
        """codes [T, q] int64 -> audio [T * frame_size] fp32; see `MimiDecoder.forward`."""
        audio: Tensor = self.decoder(codes, state, rows)
        return audio
