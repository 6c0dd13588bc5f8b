"""The tick program of the interaction family: passes, heads, sampling, codec, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microturn.kernels.arena import ArenaSpec, Twice
from microturn.kernels.depth_head import DepthInputs
from microturn.kernels.dmel import DMelWeights, dmel, dmel_spec, dmel_weights
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling import SamplingParams, sampling
from microturn.model.family import ArenaSet, StepLine, StepOutputs, TickShape
from microturn.model.inkling.trunk import TrunkState
from microturn.model.interaction.model import InteractionModel
from microturn.model.interaction.sequence import TickRows, pack_order
from microturn.model.interaction.tokenizer import FileTokenizer
from microturn.model.mimi.mimi import DecoderState

ROWS, FRAMES = "rows", "frames"
"""Cursors: rows of the trunk's sequence; 50 ms slots heard and said."""


@dataclass(frozen=True)
class _State:
    """The arenas of one ArenaSet, looked up once."""

    arenas: ArenaSet
    trunk: TrunkState
    codec: DecoderState
    dmel: Twice
    feedback: Twice


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

    def to(self, device: torch.device) -> InteractionFamily:
        self.model.to(device)
        self._bound = None
        return self

    def digest(self) -> str:
        """A hash of the weights, in hex."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def arena_specs(self) -> Sequence[ArenaSpec]:
        return (
            *self.model.trunk.arena_specs("trunk"),
            *self.model.codec.arena_specs("codec", self.shape.frames),
            dmel_spec("dmel", FRAMES),
            ArenaSpec(
                "feedback", "twice", (1 + self.shape.num_codebooks,), 1, ROWS, dtype=torch.int64
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
                feedback,
            )
        return self._bound

    def step(self, lines: Sequence[StepLine], arenas: ArenaSet) -> StepOutputs:
        """One tick for these lines; see ModelFamily.step."""
        state = self._state(arenas)
        frames = self.shape.frames
        at_row = [arenas.committed(ROWS, line.slot) for line in lines]
        counts = [
            TickRows(
                line.n_feedback,
                len(line.context_ids),
                0 if line.patches is None else len(line.patches),
                frames if line.emits else 0,
            )
            for line in lines
        ]
        rows = RowBatch.build([line.slot for line in lines], [c.total for c in counts], at_row)
        speaking = [b for b, line in enumerate(lines) if line.emits]
        heard = RowBatch.build(
            [lines[b].slot for b in speaking],
            [frames] * len(speaking),
            [arenas.committed(FRAMES, lines[b].slot) for b in speaking],
        )
        x = self._embed(lines, counts, at_row, heard, state)
        hidden = self.model.trunk(x, state.trunk, rows)
        outputs = self._empty_outputs(lines, counts, frames)
        if speaking:
            ends = rows.row_offsets[1:].long()[speaking] - 1
            next_row = [at_row[b] + counts[b].total for b in speaking]
            self._speak(lines, speaking, next_row, hidden[ends], heard, state, outputs)
        return outputs

    def _embed(
        self,
        lines: Sequence[StepLine],
        counts: Sequence[TickRows],
        at_row: Sequence[int],
        heard: RowBatch,
        state: _State,
    ) -> Tensor:
        audio = [line.audio for line in lines if line.emits]
        if audio:
            hops = torch.cat(audio).view(heard.num_rows, -1)
            bins = dmel(hops, self._dmel, state.dmel, heard)
        else:
            bins = torch.empty(0, self.config.audio_mels, dtype=torch.int64)
        start_text, start_codes = self.model.start_ids(heard.positions.device)
        text, codes = [start_text[:0]], [start_codes[:0]]
        for line, position in zip(lines, at_row, strict=True):
            if not line.n_feedback:
                continue
            if position == 0:
                text.append(start_text)
                codes.append(start_codes)
            else:
                last = state.feedback.read(torch.tensor([line.slot]))
                text.append(last[:, 0])
                codes.append(last[:, 1:])
        patches = [line.patches for line in lines if line.patches is not None]
        return self.model.embed_rows(
            (torch.cat(text), torch.cat(codes)),
            torch.cat([line.context_ids for line in lines]),
            torch.cat(patches) if patches else None,
            bins,
            torch.tensor(pack_order(counts)),
        )

    def _empty_outputs(
        self, lines: Sequence[StepLine], counts: Sequence[TickRows], frames: int
    ) -> StepOutputs:
        n = len(lines)
        return StepOutputs(
            ok=torch.ones(n, dtype=torch.bool),
            text_ids=torch.zeros(n, frames, dtype=torch.int64),
            codes=torch.zeros(n, frames, self.shape.num_codebooks, dtype=torch.int64),
            audio=torch.zeros(n, self.shape.output_samples),
            advance={
                ROWS: [
                    c.total + (frames - 1 if line.emits else 0)
                    for c, line in zip(counts, lines, strict=True)
                ],
                FRAMES: [frames if line.emits else 0 for line in lines],
            },
        )

    def _speak(
        self,
        lines: Sequence[StepLine],
        speaking: Sequence[int],
        next_row: Sequence[int],
        hidden: Tensor,
        heard: RowBatch,
        state: _State,
        outputs: StepOutputs,
    ) -> None:
        """Fills the rows of `outputs` that speak. hidden [E, H]: the last input row of each."""
        frames = self.shape.frames
        drawn = [lines[b] for b in speaking]
        slots = heard.slot_ids.tolist()
        at_frame = heard.positions.view(len(speaking), frames)
        text_params = _params(drawn, "text")
        code_params = _params(drawn, "audio")
        ok = torch.ones(len(speaking), dtype=torch.bool)
        texts, codes = [], []
        for j in range(frames):
            logits = self.model.trunk.logits(hidden)
            ok &= torch.isfinite(logits).all(-1)
            # <start> opens a session and is never said.
            logits[:, self.config.start_id] = -torch.inf
            step = at_frame[:, j]
            text = sampling(logits, text_params.at(step), None, None)
            frame = self.model.depth(DepthInputs(hidden, text, code_params.at(step)))
            ok &= frame.finite
            texts.append(text)
            codes.append(frame.codes)
            if j < frames - 1:
                rows = RowBatch.build(slots, [1] * len(slots), [r + j for r in next_row])
                x = self.model.embed_feedback(text, frame.codes)
                hidden = self.model.trunk(x, state.trunk, rows)
        state.feedback.write(heard.slot_ids.long(), torch.cat([texts[-1][:, None], codes[-1]], -1))
        said = torch.stack(codes, 1)
        audio = self.model.codec(said.flatten(0, 1), state.codec, heard).view(len(speaking), -1)
        ok &= torch.isfinite(audio).all(-1)
        outputs.ok[speaking] = ok
        outputs.text_ids[speaking] = torch.stack(texts, 1)
        outputs.codes[speaking] = said
        outputs.audio[speaking] = audio.clamp(-1, 1)


def _params(lines: Sequence[StepLine], stream: str) -> _Drawn:
    return _Drawn(
        torch.tensor([getattr(line.sampling, f"{stream}_temperature") for line in lines]),
        torch.tensor([getattr(line.sampling, f"{stream}_top_k") for line in lines]),
        torch.tensor([line.seed for line in lines]),
    )


@dataclass(frozen=True)
class _Drawn:
    """Sampling of the speaking lines, constant over a tick: [E] each."""

    temperature: Tensor
    top_k: Tensor
    seed: Tensor

    def at(self, step: Tensor) -> SamplingParams:
        """step [E]: the output position a draw belongs to."""
        return SamplingParams(self.temperature, self.top_k, self.seed, step, stream=0)
