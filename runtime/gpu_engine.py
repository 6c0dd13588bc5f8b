"""The engine of a GPU: a tick is one replay of a captured graph.

A graph holds the whole tick program for one size of batch. Host and device share two sets of
buffers, so that the host may fill one tick's inputs and read another's outputs while a third
runs; every copy between host and device is one run of bytes, on a queue of its own:

    up    pinned input -> staged input
    main  staged input -> the graph's input, graph, the graph's output -> staged output
    down  staged output -> pinned output
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from microturn.model.family import ModelFamily, TickShape
from microturn.model.tick import TickInputs, TickSize
from microturn.model.tick import TickOutputs as Buffers
from microturn.runtime.arenas import Arenas
from microturn.runtime.cpu_engine import OLD
from microturn.runtime.engine import RowInput, SlotState, TickOutputs
from microturn.runtime.graphs import Machine, Mark, Work
from microturn.runtime.kernel_index import Place, placing
from microturn.runtime.plan import RowPlan, TickPlan, bucket
from microturn.runtime.staging import Staged, share_out, stage

log = logging.getLogger("microturn.runtime.gpu_engine")

SETS = 2
"""Ticks that may be under way at once."""


def tick_sizes(num_slots: int, shape: TickShape, sees: bool) -> tuple[TickSize, ...]:
    """The sizes that a graph is captured for.

    Lines: powers of two up to num_slots. Rows: from what lines bring when they only hear and
    speak, in steps of two up to what they may bring at most; the first size also exists for lines
    that bring no more than that, where attention has less to prepare for. From the second on, also
    with room for images.
    """
    usual = bucket(1 + shape.frames)
    sizes = []
    for lines in sorted({*(min(1 << k, num_slots) for k in range(num_slots.bit_length() + 1))}):
        sizes.append(TickSize(lines, lines * usual, usual, 0, lines))
        each = usual
        while each < 2 * shape.max_rows:
            rows = lines * min(each, shape.max_rows)
            sizes.append(TickSize(lines, rows, shape.max_rows, 0, lines))
            if sees and each > usual:
                sizes.append(TickSize(lines, rows, shape.max_rows, rows, lines))
            each *= 2
    return tuple(sorted({*sizes}, key=_work))


def _work(size: TickSize) -> tuple[int, ...]:
    """The least first: rows cost most."""
    return size.rows, size.patches, size.lines, size.line_rows


class Ticket(NamedTuple):
    """A tick under way: which set of buffers it has, and when its outputs are on the host."""

    rows: tuple[RowPlan, ...]
    place: int
    made: Buffers
    began: Mark
    ended: Mark
    ready: Mark


class _Set:
    """Buffers of one tick under way, and how far the device is with them."""

    def __init__(self, machine: Machine, nbytes_in: int, nbytes_out: int) -> None:
        self.host_in, self.host_out = machine.host(nbytes_in), machine.host(nbytes_out)
        self.staged_in, self.staged_out = machine.memory(nbytes_in), machine.memory(nbytes_out)
        self.taken: Mark | None = None
        """The graph has its input: host_in and staged_in may be written again."""
        self.busy = False
        """Launched and not collected: host_out is not read yet."""
        self._views: dict[TickSize, tuple[TickInputs, Buffers, int, int]] = {}

    def views(self, size: TickSize, shape: TickShape) -> tuple[TickInputs, Buffers, int, int]:
        """Input and output on the host, and the bytes of each."""
        if size not in self._views:
            self._views[size] = (
                TickInputs.carve(self.host_in, size, shape),
                Buffers.carve(self.host_out, size, shape),
                TickInputs.nbytes(size, shape),
                Buffers.nbytes(size, shape),
            )
        return self._views[size]


class GpuEngine:
    """Steps a family over the arenas of `num_slots` sessions: see engine.Engine.

    `launch` and `collect` are the two halves of `step`: between them the host is free. A step that
    raises before the device was asked changes nothing; what a GPU raises is EngineLost.

    graph_misses   ticks after warm-up that no captured graph held: an error, each is logged
    step_ms        what the device took for the tick collected last
    sizes          of the graphs, by the work they are
    places         of each size the kernels of its graph, in order: pass, layer, op
    """

    def __init__(
        self,
        family: ModelFamily,
        num_slots: int,
        machine: Machine,
        sizes: Sequence[TickSize] | None = None,
    ) -> None:
        """sizes: in place of `tick_sizes`."""
        self._family, self._machine = family, machine
        shape = family.shape
        self.sizes = tuple(sorted(sizes or tick_sizes(num_slots, shape, family.sees), key=_work))
        self.arenas = Arenas(family.arena_specs(), num_slots, machine.device)
        self.graph_misses = 0
        self.step_ms = 0.0
        nbytes_in = max(TickInputs.nbytes(size, shape) for size in self.sizes)
        nbytes_out = max(Buffers.nbytes(size, shape) for size in self.sizes)
        self._input, self._output = machine.memory(nbytes_in), machine.memory(nbytes_out)
        self._sets = [_Set(machine, nbytes_in, nbytes_out) for _ in range(SETS)]
        self._up, self._main, self._down = machine.queue(), machine.queue(), machine.queue()
        self._graphs: dict[TickSize, Work] = {}
        self.places: dict[TickSize, list[Place]] = {}
        self._next, self._warm = 0, False
        self._choose = lru_cache(4096)(self._smallest)

    @property
    def num_slots(self) -> int:
        return self.arenas.num_slots

    @property
    def state_bytes(self) -> int:
        return self.arenas.bytes

    def step(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> TickOutputs:
        """See Engine.step."""
        return self.collect(self.launch(plan, inputs))

    def launch(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> Ticket:
        """Asks the device for one tick and returns at once. At most two may be under way; they run
        in the order asked for. Raises RuntimeError for a third.
        """
        frames = self._family.shape.frames
        staged = stage(plan, inputs)
        wanted = staged.size(frames)
        size = self._choose(wanted)
        if size is None:
            return self._miss(staged, wanted)
        index = self._take()
        own, shape = self._sets[index], self._family.shape
        if own.taken is not None:
            own.taken.wait()
        heard, made, n, m = own.views(size, shape)
        heard.fill(staged.lines, frames)
        with torch.inference_mode():
            self._up.copy(own.staged_in[:n], own.host_in[:n])
            self._main.after(self._up.mark())
            began = self._main.mark()
            self._main.copy(self._input[:n], own.staged_in[:n])
            own.taken = self._main.mark()
            self._main.run(self._graphs[size])
            self._main.copy(own.staged_out[:m], self._output[:m])
            ended = self._main.mark()
            self._down.after(ended)
            self._down.copy(own.host_out[:m], own.staged_out[:m])
        own.busy = True
        self._next = (index + 1) % SETS
        return Ticket(staged.rows, index, made, began, ended, self._down.mark())

    def collect(self, ticket: Ticket) -> TickOutputs:
        """Waits for the tick and gives its outputs. Once for each ticket, in any order."""
        try:
            ticket.ready.wait()
        finally:
            if ticket.place >= 0:
                self._sets[ticket.place].busy = False
        self.step_ms = ticket.ended.ms_since(ticket.began)
        return share_out(ticket.rows, ticket.made)

    def warm_up(self) -> None:
        """Captures every graph, the largest first, over lines of no slot; slots stay fresh."""
        shape, nobody = self._family.shape, self._sets[0].host_in
        for size in reversed(self.sizes):
            TickInputs.carve(nobody, size, shape).fill((), shape.frames)
            n = TickInputs.nbytes(size, shape)
            self._input[:n].copy_(nobody[:n])
            heard = TickInputs.carve(self._input, size, shape)
            said = Buffers.carve(self._output, size, shape)
            self._graphs[size] = self._machine.capture(self._program(heard, said))
        self._machine.finish()
        self._warm = True
        self._choose.cache_clear()
        log.info("%d graphs captured", len(self._graphs))

    def close(self) -> None:
        """Nothing to give back but memory, which goes with the engine."""

    def save_slot(self, slot: int) -> SlotState:
        """See SavesSlots.save_slot."""
        with self._between_ticks():
            return self.arenas.save(slot)

    def load_slot(self, slot: int, state: SlotState) -> None:
        """See SavesSlots.load_slot."""
        with self._between_ticks():
            self.arenas.load(slot, state)

    def age_slot(self, slot: int) -> None:
        """See foresight.AgesSlots."""
        with self._between_ticks():
            self.arenas.age(slot, OLD)

    @contextmanager
    def _between_ticks(self) -> Iterator[None]:
        """The ticks asked for are done before, and what is asked inside before the next."""
        self._main.mark().wait()
        with torch.inference_mode():
            yield
        self._machine.finish()

    def _program(self, heard: TickInputs, said: Buffers) -> Work:
        model = getattr(self._family, "model", None)

        def run() -> None:
            with torch.inference_mode():
                if self._warm or model is None:
                    self._family.tick(heard, said, self.arenas)
                    return
                with placing(model) as places:
                    self._family.tick(heard, said, self.arenas)
            self.places[heard.size] = places

        return run

    def _smallest(self, wanted: TickSize) -> TickSize | None:
        """The captured size of the least work that holds it."""
        return next((s for s in self.sizes if s in self._graphs and s.holds(wanted)), None)

    def _take(self) -> int:
        index = self._next
        if self._sets[index].busy:
            raise RuntimeError(f"{SETS} ticks are under way; collect the first one")
        return index

    def _miss(self, staged: Staged, wanted: TickSize) -> Ticket:
        """The program without a graph, kernel by kernel: slow, and said so."""
        self.graph_misses += 1
        log.error("no graph holds %s: %d misses since warm-up", wanted, self.graph_misses)
        shape, device = self._family.shape, self._machine.device
        made = Buffers.allocate(wanted, shape)
        filled = TickInputs.allocate(wanted, shape)
        filled.fill(staged.lines, shape.frames)
        heard = TickInputs(wanted, **_moved(filled, device))
        said = Buffers(wanted, **_moved(made, device))
        began = self._main.mark()
        self._main.run(self._program(heard, said))
        for field in _tensors(made):
            self._main.copy(getattr(made, field), getattr(said, field))
        ended = self._main.mark()
        return Ticket(staged.rows, -1, made, began, ended, ended)


def _moved(part: TickInputs | Buffers, device: torch.device) -> dict[str, Tensor]:
    return {name: getattr(part, name).to(device) for name in _tensors(part)}


def _tensors(part: TickInputs | Buffers) -> list[str]:
    names = [field.name for field in fields(part)]
    return [name for name in names if isinstance(getattr(part, name), Tensor)]
