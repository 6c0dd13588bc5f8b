"""The memory a tick program reads and writes: one run of bytes in, one run of bytes out, so that
each is one copy between host and device, and a captured graph always finds them in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microturn.model.family import Sampling, TickShape

ALIGNMENT = 256
"""Bytes: where a field begins, so that kernels load 16 bytes at a time."""

PATCH = (2, 40, 40, 3)


class TickLine(NamedTuple):
    """One session's part of a tick, on the host.

    slot         arena row; reset: it has a new tenant
    emits        False while warming: context rows are fed, nothing is heard or said
    n_feedback   1 when the first row is the session's start row or its last output position, else 0
    context_ids  ids
    audio        [input_samples] fp32, not looked at unless the line emits
    seed         Philox key of the session
    patches      [n_patches, 2, 40, 40, 3] int16, None when there are none
    """

    slot: int
    emits: bool
    reset: bool
    n_feedback: int
    context_ids: Sequence[int]
    audio: NDArray[np.float32]
    seed: int
    sampling: Sampling
    patches: NDArray[np.int16] | None = None

    def num_rows(self, frames: int) -> int:
        """Rows of the append pass in a tick of so many frames."""
        return self.n_feedback + len(self.context_ids) + self.num_patches + frames * self.emits

    @property
    def num_patches(self) -> int:
        return 0 if self.patches is None else len(self.patches)


class TickSize(NamedTuple):
    """What the buffers of a tick hold, and so which program runs: the key of a captured graph.

    lines      B
    rows       T of the append pass, packed
    line_rows  the most a line brings
    patches    P; 0: no image in this tick
    speaking   E: only the first E lines may speak
    """

    lines: int
    rows: int
    line_rows: int
    patches: int
    speaking: int

    @classmethod
    def of(cls, lines: Sequence[TickLine], frames: int) -> TickSize:
        """The least that holds these lines."""
        counts = [line.num_rows(frames) for line in lines]
        return cls(
            len(lines),
            sum(counts),
            max(counts, default=0),
            sum(line.num_patches for line in lines),
            sum(line.emits for line in lines),
        )

    def holds(self, other: TickSize) -> bool:
        """Whether a tick of the other size fits into these buffers."""
        return all(ours >= theirs for ours, theirs in zip(self, other, strict=True))


class _Field(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]


def _inputs(size: TickSize, shape: TickShape) -> dict[str, _Field]:
    lines, rows, speaking = size.lines, size.rows, size.speaking
    return {
        "slot_ids": _Field(torch.int32, (lines,)),
        "row_offsets": _Field(torch.int32, (lines + 1,)),
        "emits": _Field(torch.bool, (lines,)),
        "reset": _Field(torch.bool, (lines,)),
        "sources": _Field(torch.int64, (rows,)),
        "context_ids": _Field(torch.int64, (rows,)),
        "text_temperature": _Field(torch.float32, (speaking,)),
        "text_top_k": _Field(torch.int64, (speaking,)),
        "audio_temperature": _Field(torch.float32, (speaking,)),
        "audio_top_k": _Field(torch.int64, (speaking,)),
        "seed": _Field(torch.int64, (speaking,)),
        "audio": _Field(torch.float32, (speaking, shape.input_samples)),
        "patches": _Field(torch.int16, (size.patches, *PATCH)),
    }


def _outputs(size: TickSize, shape: TickShape) -> dict[str, _Field]:
    frames, books = shape.frames, shape.num_codebooks
    return {
        "ok": _Field(torch.bool, (size.lines,)),
        "text_ids": _Field(torch.int64, (frames, size.speaking)),
        "codes": _Field(torch.int64, (frames, size.speaking, books)),
        "audio": _Field(torch.float32, (size.lines, shape.output_samples)),
        "experts": _Field(torch.int64, (frames,)),
    }


def _places(wanted: Mapping[str, _Field]) -> Iterator[tuple[str, _Field, int, int]]:
    """(name, field, first byte, last byte + 1), in order."""
    at = 0
    for name, made in wanted.items():
        end = at + made.dtype.itemsize * prod(made.shape)
        yield name, made, at, end
        at = -(-end // ALIGNMENT) * ALIGNMENT


def _carve(memory: Tensor, wanted: Mapping[str, _Field]) -> dict[str, Tensor]:
    return {
        name: memory[at:end].view(made.dtype).view(made.shape)
        for name, made, at, end in _places(wanted)
    }


class _Run:
    """Buffers of a tick in one run of bytes."""

    def __init__(self, size: TickSize, **tensors: Tensor) -> None: ...

    @staticmethod
    def fields(size: TickSize, shape: TickShape) -> dict[str, _Field]:
        """What lies in it, in order."""
        raise NotImplementedError

    @classmethod
    def nbytes(cls, size: TickSize, shape: TickShape) -> int:
        return max(end for *_, end in _places(cls.fields(size, shape)))

    @classmethod
    def carve(cls, memory: Tensor, size: TickSize, shape: TickShape) -> Self:
        """Views of memory [N] uint8, N at least `nbytes`."""
        return cls(size, **_carve(memory, cls.fields(size, shape)))

    @classmethod
    def allocate(cls, size: TickSize, shape: TickShape) -> Self:
        """On the host, zeros."""
        memory = torch.zeros(cls.nbytes(size, shape), dtype=torch.uint8)
        return cls.carve(memory, size, shape)


@dataclass(frozen=True)
class TickInputs(_Run):
    """A tick's inputs. Lines from `speaking` on only read context.

    slot_ids    [B] int32, -1 pads; row_offsets [B + 1] int32
    emits       [B] bool: the line hears and speaks
    reset       [B] bool: the slot has a new tenant
    sources     [T] int64: packed row -> index into the kinds laid end to end: B rows read back, T
                context ids, P patches, E * F audio slots. Rows of nobody: 0
    context_ids [T] int64, each at its own packed row
    text_*, audio_*, seed  [E]: how a line draws
    audio       [E, input_samples] fp32
    patches     [P, 2, 40, 40, 3] int16
    """

    size: TickSize
    slot_ids: Tensor
    row_offsets: Tensor
    emits: Tensor
    reset: Tensor
    sources: Tensor
    context_ids: Tensor
    text_temperature: Tensor
    text_top_k: Tensor
    audio_temperature: Tensor
    audio_top_k: Tensor
    seed: Tensor
    audio: Tensor
    patches: Tensor

    @staticmethod
    def fields(size: TickSize, shape: TickShape) -> dict[str, _Field]:
        return _inputs(size, shape)

    def fill(self, lines: Sequence[TickLine], frames: int) -> None:
        """Writes lines into host memory, those that emit first. A line's rows: what it reads back,
        context, patches, audio slots, as spec/interaction.md 1 orders them.

        Every value that decides what a program does is written, so memory may be used again, for
        ticks of other sizes too.
        Raises ValueError when the lines do not fit, or one that emits comes after one that does
        not.
        """
        size, at = self.size, self._on_host
        speaking = sum(line.emits for line in lines)
        if not all(line.emits for line in lines[:speaking]):
            raise ValueError("lines that emit come first")
        of_patches = size.lines + size.rows
        of_audio = of_patches + size.patches
        sources: list[int] = []
        offsets = [0]
        patch = 0
        for b, line in enumerate(lines):
            if line.n_feedback:
                sources.append(b)
            if count := len(line.context_ids):
                first = size.lines + len(sources)
                sources += range(first, first + count)
            if count := line.num_patches:
                sources += range(of_patches + patch, of_patches + patch + count)
                patch += count
            if line.emits:
                first = of_audio + b * frames
                sources += range(first, first + frames)
            offsets.append(len(sources))
        n, rows = len(lines), len(sources)
        most = max((end - start for start, end in pairwise(offsets)), default=0)
        wanted = TickSize(n, rows, most, patch, speaking)
        if not size.holds(wanted):
            raise ValueError(f"buffers of {size} cannot hold {wanted}")
        at["slot_ids"][:n] = [line.slot for line in lines]
        at["slot_ids"][n:] = -1
        at["row_offsets"][: n + 1] = offsets
        at["row_offsets"][n + 1 :] = rows
        at["emits"][:speaking] = True
        at["emits"][speaking:] = False
        at["reset"][:n] = [line.reset for line in lines]
        at["reset"][n:] = False
        at["sources"][:rows] = sources
        at["sources"][rows:] = 0
        heard = lines[:speaking]
        for name in ("text_temperature", "text_top_k", "audio_temperature", "audio_top_k"):
            at[name][:speaking] = [getattr(line.sampling, name) for line in heard]
        at["text_temperature"][speaking:] = at["audio_temperature"][speaking:] = 0.0
        at["text_top_k"][speaking:] = at["audio_top_k"][speaking:] = 1
        at["seed"][:speaking] = [line.seed for line in heard]
        if heard:
            np.stack([line.audio for line in heard], out=at["audio"][:speaking])
        context, patches = at["context_ids"], at["patches"]
        context[:] = 0  # rows of other kinds are looked up too, and must find an id
        patch = 0
        for line, first in zip(lines, offsets, strict=False):
            if count := len(line.context_ids):
                row = first + line.n_feedback
                context[row : row + count] = line.context_ids
            if line.patches is not None:
                patches[patch : patch + len(line.patches)] = line.patches
                patch += len(line.patches)

    @cached_property
    def _on_host(self) -> dict[str, NDArray[Any]]:
        """The tensors as arrays."""
        return {k: v.numpy() for k, v in vars(self).items() if isinstance(v, Tensor)}


@dataclass(frozen=True)
class TickOutputs(_Run):
    """ok [B] bool, text_ids [F, E] int64, codes [F, E, Q] int64, audio [B, output_samples] fp32;
    experts [F] int64: distinct experts that the append pass, and the pass after each output
    position but the last, read the weights of, in all layers together.
    """

    size: TickSize
    ok: Tensor
    text_ids: Tensor
    codes: Tensor
    audio: Tensor
    experts: Tensor

    @staticmethod
    def fields(size: TickSize, shape: TickShape) -> dict[str, _Field]:
        return _outputs(size, shape)
