"""The buffers of a tick: where they lie, and what lines become in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microturn.model.family import Sampling, TickShape
from microturn.model.tick import ALIGNMENT, PATCH, TickInputs, TickLine, TickOutputs, TickSize

SHAPE = TickShape(100, 2, 16_000, 1_600, 24_000, 2_400, 4, 256, 64)


def line(
    slot: int, *, emits: bool = True, feedback: int = 1, context: int = 0, patches: int = 0
) -> TickLine:
    return TickLine(
        slot,
        emits,
        reset=slot == 9,
        n_feedback=feedback,
        context_ids=range(100 * slot, 100 * slot + context),
        audio=np.full(1_600 * emits, slot, np.float32),
        seed=2**62 + slot,
        sampling=Sampling(text_top_k=slot + 1),
        patches=np.full((patches, *PATCH), slot, np.int16) if patches else None,
    )


def test_rows_are_packed_line_by_line() -> None:
    """Exact buffers: kinds lie as f0 f1 | t0 .. t7 | p0 | a0 a1 a2 a3."""
    lines = [line(9), line(4, context=1, patches=1)]
    size = TickSize.of(lines, 2)
    assert size == TickSize(lines=2, rows=8, line_rows=5, patches=1, speaking=2)
    made = TickInputs.allocate(size, SHAPE)
    made.fill(lines, 2)
    assert made.sources.tolist() == [0, 11, 12, 1, 2 + 4, 10, 13, 14]
    assert made.row_offsets.tolist() == [0, 3, 8]
    assert made.context_ids[4] == 400
    assert made.patches[0].unique().tolist() == [4]
    assert made.audio[:, 0].tolist() == [9.0, 4.0]
    assert made.reset.tolist() == [True, False]
    assert made.seed.tolist() == [2**62 + 9, 2**62 + 4] and made.text_top_k.tolist() == [10, 5]


def test_buffers_used_again_forget_what_they_held() -> None:
    size = TickSize(lines=4, rows=64, line_rows=64, patches=8, speaking=4)
    memory = torch.full((TickInputs.nbytes(size, SHAPE),), 255, dtype=torch.uint8)
    used, fresh = TickInputs.carve(memory, size, SHAPE), TickInputs.allocate(size, SHAPE)
    used.fill([line(s, context=5, patches=2) for s in (9, 8, 7, 6)], 2)
    later = [line(3), line(2, emits=False, feedback=0, context=3)]
    for made in (used, fresh):
        made.fill(later, 2)
        assert made.slot_ids.tolist() == [3, 2, -1, -1]
        assert made.row_offsets.tolist() == [0, 3, 6, 6, 6]
        assert made.emits.tolist() == [True, False, False, False]
        assert not made.reset.any() and not made.sources[6:].any()
        assert not made.text_temperature[1:].any(), "nobody draws with another's heat"
    assert torch.equal(used.sources, fresh.sources)
    assert torch.equal(used.context_ids, fresh.context_ids)


def test_fields_lie_where_a_kernel_can_load_sixteen_bytes() -> None:
    size = TickSize(lines=3, rows=7, line_rows=7, patches=1, speaking=3)
    for kind in (TickInputs, TickOutputs):
        made = kind.allocate(size, SHAPE)
        tensors = [value for value in vars(made).values() if isinstance(value, torch.Tensor)]
        starts = [t.data_ptr() for t in tensors]
        assert all((start - starts[0]) % ALIGNMENT == 0 for start in starts)
        ends = [t.data_ptr() + t.nbytes for t in tensors]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
        assert ends[-1] - starts[0] == kind.nbytes(size, SHAPE)


def test_lines_that_do_not_fit_are_refused() -> None:
    made = TickInputs.allocate(TickSize(1, 4, 4, 0, 1), SHAPE)
    for lines, words in (
        ([line(1), line(2)], "cannot hold"),
        ([line(1, context=2)], "cannot hold"),
        ([line(1, patches=1)], "cannot hold"),
    ):
        with pytest.raises(ValueError, match=words):
            made.fill(lines, 2)
    made = TickInputs.allocate(TickSize(2, 8, 4, 0, 2), SHAPE)
    with pytest.raises(ValueError, match="emit come first"):
        made.fill([line(1, emits=False), line(2)], 2)
