"""The engine of a CPU: plans as eager torch steps of a family."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from microturn.model.family import ModelFamily, Sampling
from microturn.model.tick import TickInputs, TickSize
from microturn.model.tick import TickOutputs as Buffers
from microturn.runtime.arenas import Arenas
from microturn.runtime.engine import RowInput, SlotState, TickOutputs
from microturn.runtime.image_input import PATCH
from microturn.runtime.plan import RowPlan, TickPlan, bucket
from microturn.runtime.staging import share_out, stage

SIZES = 16
"""Sizes of ticks whose buffers are kept."""
OLD = 1 << 20
"""Positions after which no window has room left."""


class CpuEngine:
    """Steps a family over the arenas of `num_slots` sessions.

    threads: torch threads of whichever thread steps. Sessions' bits do not depend on it: see
    DESIGN 2.
    """

    def __init__(self, family: ModelFamily, num_slots: int, threads: int = 1) -> None:
        self._family = family
        self._threads = threads
        self._stepping: int | None = None
        self.arenas = Arenas(family.arena_specs(), num_slots)
        self._kept: dict[TickSize, tuple[TickInputs, Buffers]] = {}

    @property
    def num_slots(self) -> int:
        return self.arenas.num_slots

    @property
    def state_bytes(self) -> int:
        return self.arenas.bytes

    def step(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> TickOutputs:
        """See Engine.step."""
        self._set_threads()
        shape = self._family.shape
        staged = stage(plan, inputs)
        heard, said = self._buffers(staged.size(shape.frames))
        heard.fill(staged.lines, shape.frames)
        with torch.inference_mode():
            self._family.tick(heard, said, self.arenas)
            return share_out(staged.rows, said)

    def warm_up(self) -> None:
        """One session and all of them, warming and live; the slots are fresh again afterwards."""
        shape = self._family.shape
        for lines in sorted({1, self.num_slots}):
            slots = range(lines)
            self._warm([_row(s, False, 1, shape.max_rows - 1, 0) for s in slots])
            for n_feedback in (0, 1):
                self._warm([_row(s, True, n_feedback, 0, shape.frames) for s in slots])
            if self._family.sees:
                room = shape.max_rows - 1 - shape.frames
                self._warm([_row(s, True, 1, 0, shape.frames, room) for s in slots])
        for slot in range(self.num_slots):
            self.arenas.reset(slot)

    def save_slot(self, slot: int) -> SlotState:
        """See SavesSlots.save_slot."""
        with torch.inference_mode():
            return self.arenas.save(slot)

    def load_slot(self, slot: int, state: SlotState) -> None:
        """See SavesSlots.load_slot."""
        with torch.inference_mode():
            self.arenas.load(slot, state)

    def age_slot(self, slot: int) -> None:
        """See foresight.AgesSlots."""
        with torch.inference_mode():
            self.arenas.age(slot, OLD)

    def close(self) -> None:
        """Nothing to give back but memory, which goes with the engine."""

    def _warm(self, rows: Sequence[RowPlan]) -> None:
        total = sum(row.num_rows for row in rows)
        inputs = {
            row.session_id: RowInput(
                audio=np.zeros(self._family.shape.input_samples * row.exec, np.float32),
                context_ids=(0,) * row.n_context,
                seed=0,
                sampling=Sampling(),
                patches=np.zeros((row.n_patches, *PATCH), np.int16),
            )
            for row in rows
        }
        self.step(TickPlan(0, 0, bucket(len(rows)), bucket(total), tuple(rows)), inputs)

    def _buffers(self, size: TickSize) -> tuple[TickInputs, Buffers]:
        """Those of the last tick of that size: what is of the last one is written anew."""
        if size not in self._kept:
            if len(self._kept) == SIZES:
                del self._kept[next(iter(self._kept))]
            shape = self._family.shape
            made = TickInputs.allocate(size, shape), Buffers.allocate(size, shape)
            self._kept[size] = made
        return self._kept[size]

    def _set_threads(self) -> None:
        """torch keeps the count by thread, and whoever steps may change."""
        current = threading.get_ident()
        if self._stepping != current:
            torch.set_num_threads(self._threads)
            self._stepping = current


def _row(
    slot: int, live: bool, n_feedback: int, n_context: int, n_audio: int, n_patches: int = 0
) -> RowPlan:
    return RowPlan(
        session_id=f"warm-up-{slot}",
        slot=slot,
        exec=live,
        reset=not live,
        n_context=n_context,
        n_patches=n_patches,
        n_audio=n_audio,
        n_feedback=n_feedback,
    )
