"""Trunks and codecs fed in pieces."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.model.inkling.trunk import Trunk, TrunkState
from microturn.model.mimi import Mimi
from microturn.runtime.arenas import Arenas


def seeded(choose: random.Random | None) -> random.Random:
    """The one given, or a new one that `random.seed` decides."""
    return choose or random.Random(random.random())


def random_cuts(total: int, most: int, choose: random.Random | None = None) -> list[int]:
    """Pieces of 1 to `most` that add up to `total`."""
    choose = seeded(choose)
    cuts = []
    while total:
        cuts.append(min(total, choose.randint(1, most)))
        total -= cuts[-1]
    return cuts


def fresh(trunk: Trunk, num_slots: int) -> TrunkState:
    return trunk.bind(Arenas(trunk.arena_specs("trunk"), num_slots), "trunk")


@torch.no_grad()
def whole(trunk: Trunk, streams: Sequence[Tensor]) -> list[Tensor]:
    """Embedded streams [T, H] as the lines of one batch without state -> hidden [T, H] each."""
    lengths = [len(x) for x in streams]
    rows = RowBatch.build(range(len(streams)), lengths, [0] * len(streams))
    return list(trunk(torch.cat(list(streams)), None, rows).split(lengths))


@torch.no_grad()
def feed(
    trunk: Trunk, state: TrunkState, x: Tensor, cuts: list[int], *, slot: int = 0, start: int = 0
) -> Tensor:
    """One session by itself, in pieces of `cuts`."""
    parts = []
    for part in x.split(cuts):
        rows = RowBatch.build([slot], [len(part)], [start])
        parts.append(trunk(part, state, rows))
        start += len(part)
    return torch.cat(parts)


@torch.no_grad()
def out_of_step(
    trunk: Trunk,
    streams: Sequence[Tensor],
    most: int,
    choose: random.Random | None = None,
    *,
    state: TrunkState | None = None,
    slots: Sequence[int] | None = None,
) -> list[Tensor]:
    """Sessions that start at different times, bring 0 to `most` rows a step in any order and
    sometimes pause; a padding line stands first. What does not run holds NaN.
    """
    choose = seeded(choose)
    slots = slots or choose.sample(range(len(streams) + 2), len(streams))
    state = state or fresh(trunk, len(streams) + 2)
    done, got = [0] * len(streams), [[x[:0]] for x in streams]
    step = 0
    while any(at < len(x) for at, x in zip(done, streams, strict=True)):
        lines = []
        for i in choose.sample(range(len(streams)), len(streams)):
            left = len(streams[i]) - done[i] if step >= 2 * i else 0
            lines.append((i, min(left, choose.randint(0, most)), choose.random() < 0.8))
        rows = RowBatch.build(
            [-1, *(slots[i] for i, _, _ in lines)],
            [2, *(n for _, n, _ in lines)],
            [0, *(done[i] for i, _, _ in lines)],
            exec_mask=[True, *(run for _, _, run in lines)],
        )
        x = [torch.full((2, streams[0].shape[1]), float("nan"))]
        for i, n, run in lines:
            part = streams[i][done[i] : done[i] + n]
            x.append(part if run else torch.full_like(part, float("nan")))
        parts = trunk(torch.cat(x), state, rows).split([2, *(n for _, n, _ in lines)])[1:]
        for (i, n, run), part in zip(lines, parts, strict=True):
            if run:
                got[i].append(part)
                done[i] += n
        step += 1
    return [torch.cat(parts) for parts in got]


class CodecStream:
    """One direction of a codec over `num_slots` slots. Arenas begin as NaN all over."""

    def __init__(self, codec: Mimi, direction: str, num_slots: int, max_frames: int = 4) -> None:
        encodes = direction == "encode"
        self.rows_per_frame = codec.config.frame_size if encodes else 1
        side = codec.encoder if encodes else codec.decoder
        specs = side.arena_specs("codec", max_frames)
        self.arenas = Arenas(specs, num_slots)
        self.views = {spec.name: self.arenas.view(spec.name) for spec in specs}
        for view in self.views.values():
            view.data.fill_(float("nan"))
        bind, run = (
            (codec.bind_encoder, codec.encode) if encodes else (codec.bind_decoder, codec.decode)
        )
        state = bind(self.arenas, "codec")
        self.run = lambda x, rows: run(x, state, rows)  # type: ignore[arg-type]

    def call(
        self, pieces: Mapping[int, Tensor], *, paused: Sequence[int] = (), commit: bool = True
    ) -> dict[int, Tensor]:
        """One step: slot -> what it brings, whole frames; lines of `paused` slots do not run."""
        counts = [len(x) // self.rows_per_frame for x in pieces.values()]
        running = [slot not in paused for slot in pieces]
        at = [self.arenas.committed("frames", slot) for slot in pieces]
        rows = RowBatch.build(list(pieces), counts, at, exec_mask=running)
        y = self.run(torch.cat(list(pieces.values())), rows)
        if commit:
            steps = [count * run for count, run in zip(counts, running, strict=True)]
            self.arenas.commit(list(pieces), {"frames": steps}, running)
        sizes = [len(y) // rows.num_rows * count for count in counts]
        return dict(zip(pieces, y.split(sizes), strict=True))

    def feed(
        self, sequences: Mapping[int, Tensor], calls: Sequence[Mapping[int, int]]
    ) -> dict[int, Tensor]:
        """Each slot's sequence cut as `calls` say (slot -> frames); all that came out, by slot."""
        parts: dict[int, list[Tensor]] = {slot: [] for slot in sequences}
        at = dict.fromkeys(sequences, 0)
        for counts in calls:
            pieces = {}
            for slot, count in counts.items():
                pieces[slot] = sequences[slot][at[slot] :][: count * self.rows_per_frame]
                at[slot] += len(pieces[slot])
            for slot, y in self.call(pieces).items():
                parts[slot].append(y)
        assert all(at[slot] == len(x) for slot, x in sequences.items()), "calls do not cover it"
        return {slot: torch.cat(pieces) for slot, pieces in parts.items()}


def random_calls(
    frames: Mapping[int, int], choose: random.Random, most: int = 4
) -> list[dict[int, int]]:
    """Cuts of 1 to `most` frames; in every call some of the slots, in any order."""
    left = dict(frames)
    calls = []
    while any(left.values()):
        ready = [slot for slot in left if left[slot] and choose.random() < 0.7]
        choose.shuffle(ready)
        alike = choose.randint(1, most) if choose.random() < 0.5 else 0
        call = {slot: min(left[slot], alike or choose.randint(1, most)) for slot in ready}
        for slot, count in call.items():
            left[slot] -= count
        if call:
            calls.append(call)
    return calls
