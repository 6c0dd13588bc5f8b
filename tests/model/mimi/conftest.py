"""A codec fed in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.model.mimi import Mimi
from microturn.runtime.arenas import Arenas


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


@pytest.fixture
def codec_stream() -> type[CodecStream]:
    return CodecStream
