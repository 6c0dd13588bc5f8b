"""The tick program of the interaction family: passes, heads, sampling, codec, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from microturn.kernels.arena import ArenaSpec, Twice
from microturn.kernels.commit_lines import Committed, Said, commit_lines
from microturn.kernels.depth_head import DepthInputs, DepthOutputs
from microturn.kernels.dmel import DMelWeights, dmel, dmel_spec, dmel_weights
from microturn.kernels.open_lines import LineState, OpenedLines, Opening, open_lines
from microturn.kernels.router import Routing
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling import SamplingParams, sampling
from microturn.model.cost import OpCall, TickWork
from microturn.model.family import ArenaSet, TickShape
from microturn.model.inkling.trunk import TrunkState
from microturn.model.interaction.cost import tick_calls, window_rows
from microturn.model.interaction.model import InteractionModel
from microturn.model.interaction.placement import eight_bit_tensors, place
from microturn.model.interaction.tokenizer import FileTokenizer
from microturn.model.interaction.touched import experts_touched
from microturn.model.mimi.mimi import DecoderState
from microturn.model.tick import TickInputs, TickOutputs, TickSize

ROWS, FRAMES = "rows", "frames"
"""Cursors: rows of the trunk's sequence; 50 ms slots heard and said."""


@dataclass(frozen=True)
class _State:
    """The arenas of one ArenaSet, looked up once."""

    arenas: ArenaSet
    trunk: TrunkState
    codec: DecoderState
    dmel: Twice
    lines: LineState


class InteractionFamily:
    """A loaded interaction model at one tick length: microturn.model.family.ModelFamily.

    The step of a tick is one append pass over all lines, then per output position: text from the
    unembedding, codes from the depth head, and (but for the last) a single-row pass; then the
    codec.
    """

    def __init__(
        self,
        model: InteractionModel,
        *,
        tick_ms: int = 100,
        trained: bool = False,
        tokenizer: FileTokenizer | None = None,
    ) -> None:
        config = model.config
        self.model = model.eval()
        self.config = config
        self.shape: TickShape = config.tick_shape(tick_ms)
        self.trained = trained
        self.tokenizer = tokenizer
        self.name = config.name
        self.sees = model.visual is not None
        self.listen_id = config.listen_id
        self.delegate_id = config.delegate_id
        self.speak_ids = tokenizer.special_ids("<speak>") if tokenizer else ()
        self._dmel: DMelWeights = dmel_weights()
        self._bound: _State | None = None
        self._kept: dict[tuple[int, int, torch.device], _Steady] = {}

    def to(self, device: torch.device | str, weights: str = "fp32") -> InteractionFamily:
        """Moves the weights, stored as fp32, bf16 or fp8 from then on: see `placement.place`."""
        place(self.model, device, weights)
        self._dmel = dmel_weights(device)
        self._bound = None
        return self

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes, and keeps keys, values and inputs of convolutions."""
        return self.model.trunk.embedding.dtype

    def digest(self) -> str:
        """A hash of the weights as they are stored, in hex."""
        sha = hashlib.sha256()
        stored = {**self.model.state_dict(), **eight_bit_tensors(self.model)}
        for name, tensor in sorted(stored.items()):
            sha.update(name.encode())
            sha.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    @property
    def window_rows(self) -> int:
        """See CountsCost."""
        return window_rows(self.config)

    def calls(self, work: TickWork) -> Iterator[OpCall]:
        """See CountsCost."""
        return tick_calls(self.config, self.shape.frames, work)

    def arena_specs(self) -> Sequence[ArenaSpec]:
        trunk = self.model.trunk.arena_specs("trunk")
        return (
            *(replace(spec, dtype=self.dtype) for spec in trunk),
            *self.model.codec.arena_specs("codec", self.shape.frames),
            dmel_spec("dmel", FRAMES),
            ArenaSpec(
                "feedback", "twice", (1 + self.shape.num_codebooks,), 1, FRAMES, dtype=torch.int64
            ),
        )

    def _state(self, arenas: ArenaSet) -> _State:
        if self._bound is None or self._bound.arenas is not arenas:
            dmel_state, feedback = arenas.view("dmel"), arenas.view("feedback")
            assert isinstance(dmel_state, Twice) and isinstance(feedback, Twice)
            self._bound = _State(
                arenas,
                self.model.trunk.bind(arenas, "trunk"),
                self.model.codec.bind(arenas, "codec"),
                dmel_state,
                LineState(arenas.cursor(ROWS), arenas.cursor(FRAMES), feedback),
            )
        return self._bound

    def tick(self, inputs: TickInputs, outputs: TickOutputs, arenas: ArenaSet) -> None:
        """One tick; see ModelFamily.tick."""
        state = self._state(arenas)
        size, frames = inputs.size, self.shape.frames
        opening = Opening(
            inputs.slot_ids,
            inputs.row_offsets,
            inputs.emits,
            inputs.reset,
            num_rows=size.rows,
            speaking=size.speaking,
            frames=frames,
        )
        steady = self._steady(size, inputs.slot_ids.device)
        at = open_lines(opening, steady.start, state.lines)
        rows = RowBatch(
            inputs.slot_ids, inputs.row_offsets, at.positions, steady.everyone, size.line_rows
        )
        slots, emits = inputs.slot_ids[: size.speaking], inputs.emits[: size.speaking]
        heard = RowBatch(slots, steady.frame_offsets, at.heard, emits, frames)
        decided: list[list[Routing]] = [[]]
        embedded = self._embed(inputs, at, heard, state)
        hidden = self.model.trunk(embedded, state.trunk, rows, decided[0])
        peaks = hidden.new_empty(frames, size.speaking, dtype=torch.float32)
        finite = torch.empty_like(peaks, dtype=torch.bool)
        hidden = hidden.index_select(0, at.ends)
        for j in range(frames if size.speaking else 0):
            positions = at.said[j] if j < frames - 1 else at.ends
            row = RowBatch(slots, steady.row_offsets, positions, emits, 1)
            text, codes = outputs.text_ids[j], outputs.codes[j]
            # <start>, the last id, opens a session and is never said.
            logits = self.model.trunk.logits(hidden)[:, : self.config.start_id]
            torch.linalg.vector_norm(logits, torch.inf, -1, out=peaks[j])
            sampling(logits, _draws(inputs, "text", at.steps[j]), None, row, out=text)
            asked = DepthInputs(hidden, text, _draws(inputs, "audio", at.steps[j]))
            self.model.depth(asked, row, out=DepthOutputs(codes, finite[j]))
            if j < frames - 1:
                x = self.model.embed_feedback(text, codes)
                decided.append([])
                hidden = self.model.trunk(x, state.trunk, row, decided[-1])
        experts_touched(decided, inputs.row_offsets, emits, outputs.experts)
        audio = hidden.new_empty(0, dtype=torch.float32)
        if size.speaking:
            audio = self.model.codec(
                outputs.codes.transpose(0, 1).flatten(0, 1), state.codec, heard
            )
        made = Said(
            inputs.slot_ids,
            inputs.emits,
            at.after,
            peaks,
            finite,
            outputs.text_ids,
            outputs.codes,
            audio.view(size.speaking, self.shape.output_samples),
        )
        commit_lines(made, None, state.lines, out=Committed(outputs.ok, outputs.audio))

    def _embed(self, inputs: TickInputs, at: OpenedLines, heard: RowBatch, state: _State) -> Tensor:
        """The packed rows [T, H] of the append pass."""
        hops = inputs.audio.view(heard.num_rows, self.shape.input_samples // self.shape.frames)
        bins = dmel(hops, self._dmel, state.dmel, heard)
        return self.model.embed_rows(
            (at.feedback[:, 0], at.feedback[:, 1:]),
            inputs.context_ids,
            inputs.patches if inputs.size.patches else None,
            bins,
            inputs.sources,
        )

    def _steady(self, size: TickSize, device: torch.device) -> _Steady:
        """Made once, so that a graph finds it where it was."""
        key = (size.lines, size.speaking, device)
        if key not in self._kept:
            lines = torch.arange(size.speaking + 1, dtype=torch.int32, device=device)
            start = [self.config.start_id]
            start += [self.config.codec.codebook_size] * self.shape.num_codebooks
            self._kept[key] = _Steady(
                torch.ones(size.lines, dtype=torch.bool, device=device),
                lines,
                lines * self.shape.frames,
                torch.tensor(start, device=device),
            )
        return self._kept[key]


@dataclass(frozen=True)
class _Steady:
    """What does not change from tick to tick: everyone [B] bool, true; row_offsets, frame_offsets
    [E + 1] int32, lines of one row and of F; start [1 + Q] int64, the first row of a session.
    """

    everyone: Tensor
    row_offsets: Tensor
    frame_offsets: Tensor
    start: Tensor


def _draws(inputs: TickInputs, stream: str, step: Tensor) -> SamplingParams:
    """step [E]: the output position a draw belongs to."""
    temperature = getattr(inputs, f"{stream}_temperature")
    top_k = getattr(inputs, f"{stream}_top_k")
    return SamplingParams(temperature, top_k, inputs.seed, step, stream=0)
