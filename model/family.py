"""What the runtime asks of a model family.

Adding a family means writing this, and nothing in runtime/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from microturn.kernels.arena import ArenaSpec, View

if TYPE_CHECKING:
    from microturn.model.tick import TickInputs, TickOutputs


@dataclass(frozen=True)
class Sampling:
    """How a session draws its tokens. A temperature of 0 takes the most likely one.

    Raises ValueError on a negative temperature or a top_k below 1.
    """

    text_temperature: float = 0.7
    text_top_k: int = 25
    audio_temperature: float = 0.8
    audio_top_k: int = 250

    def __post_init__(self) -> None:
        for name in ("text_temperature", "audio_temperature"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("text_top_k", "audio_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class TickShape:
    """What one tick takes in and gives out, for each session.

    A tick holds `frames` output positions; input and output samples are mono fp32 in [-1, 1].
    """

    tick_ms: int
    frames: int
    input_rate: int
    input_samples: int
    output_rate: int
    output_samples: int
    num_codebooks: int
    codebook_size: int
    max_rows: int
    """Rows one session may bring to an append pass (DESIGN 5: 64)."""


class ArenaSet(Protocol):
    """The arenas as a step sees them (runtime/arenas.py allocates them)."""

    @property
    def num_slots(self) -> int: ...
    def view(self, name: str) -> View: ...
    def cursor(self, name: str) -> Tensor:
        """[num_slots] int64: positions committed on that cursor; 0 for a fresh session."""
        ...

    def committed(self, cursor: str, slot: int) -> int:
        """Of one slot. Waits for a device."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back; special output ids decode to the empty string."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def piece(self, token_id: int) -> str:
        """The token as it joins a transcript: with a leading space where it opens a word."""
        ...


class ModelFamily(Protocol):
    """A loaded model. Its weights are on one device; it holds no session state."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> TickShape: ...
    @property
    def trained(self) -> bool:
        """False for seeded random weights: every output then says "untrained"."""
        ...

    @property
    def sees(self) -> bool:
        """Whether image patches can be fed; queued images wait otherwise."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def listen_id(self) -> int: ...
    @property
    def delegate_id(self) -> int: ...
    @property
    def speak_ids(self) -> Sequence[int]:
        """The ids that ask for the context after them to be voiced; empty when the vocabulary
        has none.
        """
        ...

    def digest(self) -> str:
        """A hash of the weights, in hex: the same weights give the same one everywhere."""
        ...

    def arena_specs(self) -> Sequence[ArenaSpec]: ...
    def tick(self, inputs: TickInputs, outputs: TickOutputs, arenas: ArenaSet) -> None:
        """One tick, begun, run and committed: cursors and parity of every line that is ok move on,
        nothing else does.

        Shapes follow from inputs.size alone, and on a device nothing is read back: a graph can hold
        it. Call under torch.inference_mode().
        """
        ...

    def to(self, device: torch.device | str, weights: str = ...) -> ModelFamily:
        """Moves the weights, stored as "fp32", "bf16" or "fp8" from then on."""
        ...
