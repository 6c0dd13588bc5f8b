"""The one protocol of every engine: the CPU's, the GPU's, a fake. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.image_input import PATCH
from microturn.runtime.plan import TickPlan

if TYPE_CHECKING:
    from microturn.model.family import Sampling


@dataclass(frozen=True)
class RowInput:
    """What one session brings to a tick: its RowPlan says how much of each.

    audio        [input_samples] fp32 at the model's input rate; empty when the row does not exec
    context_ids  n_context ids
    seed, sampling  constant over a session unless it changes them
    patches      [n_patches, 2, 40, 40, 3] int16, see image_input.py
    """

    audio: NDArray[np.float32]
    context_ids: Sequence[int]
    seed: int
    sampling: Sampling
    patches: NDArray[np.int16] = field(default_factory=lambda: np.empty((0, *PATCH), np.int16))


@dataclass(frozen=True)
class RowOutput:
    """What one session gets from a tick.

    ok        False: logits or audio were not finite; nothing of this tick was committed for the
              session
    text_ids  [F] int64, codes [F, Q] int64, audio [output_samples] fp32; empty when the row did
                         not exec
    """

    ok: bool
    text_ids: NDArray[np.int64]
    codes: NDArray[np.int64]
    audio: NDArray[np.float32]


@dataclass(frozen=True)
class TickOutputs:
    """Outputs by session id, one for each row of the plan.

    experts  distinct experts whose weights were read, over all layers and passes of the tick
    """

    rows: Mapping[str, RowOutput]
    experts: int = 0


@dataclass(frozen=True)
class SlotState:
    """All that a slot has committed, out of its arenas: what a snapshot holds of it.

    layout   of the arenas, in order: the fields of each spec by name
    cursors  committed positions
    data     [n] uint8 by arena
    """

    layout: Sequence[Mapping[str, Any]]
    cursors: Mapping[str, int]
    data: Mapping[str, NDArray[np.uint8]]


@runtime_checkable
class SavesSlots(Protocol):
    """An engine whose sessions can be snapshotted and restored."""

    def save_slot(self, slot: int) -> SlotState:
        """A copy on the host of what the slot has committed. Call between ticks."""
        ...

    def load_slot(self, slot: int, state: SlotState) -> None:
        """The slot goes on from `state`. Call between ticks.

        Raises ValueError when the state is not of these arenas; the slot is then as it was.
        """
        ...


class Engine(Protocol):
    """Executes plans.

    State changes only by a step that returns; one that raises changed nothing.
    """

    @property
    def num_slots(self) -> int: ...
    @property
    def state_bytes(self) -> int:
        """Memory that holds sessions."""
        ...

    def step(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> TickOutputs:
        """Runs and commits one tick. Rows that are not ok keep their last commit."""
        ...

    def warm_up(self) -> None:
        """Runs every shape once, on slots that hold no session."""
        ...

    def close(self) -> None: ...
