"""open_lines and commit_lines: what a tick begins with, and what it leaves behind."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from microturn.kernels.commit_lines.reference import Said
from microturn.kernels.registry import get
from microturn.kernels.testing import to_device
from microturn.kernels.tree import tensors

FAKE = [(op, case) for op in ("open_lines", "commit_lines") for case in get(op).cases]


def clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if dataclasses.is_dataclass(value):
        return type(value)(**{k: clone(v) for k, v in vars(value).items()})
    return value


@pytest.mark.parametrize(("op", "case"), FAKE, ids=lambda v: getattr(v, "id", v))
def test_a_kernel_does_what_the_reference_does(op: str, case: Any, device: str) -> None:
    """To the bit, state too: they move integers."""
    item = get(op)
    x, weights, state, rows = item.make_inputs(case, device=device)
    same_x, same_weights, other = to_device((x, weights, state), "cpu")
    got = item.kernel(x, weights, state, rows)
    want = item.reference(same_x, same_weights, other, rows)
    for a, b in zip(tensors(got), tensors(want), strict=True):
        assert torch.equal(a.cpu(), b)
    for a, b in zip(tensors(state), tensors(other), strict=True):
        assert torch.equal(a.cpu(), b)


def test_a_new_tenant_starts_at_zero_and_reads_the_start_back() -> None:
    case = get("open_lines").cases[1]
    x, start, state, _ = get("open_lines").make_inputs(case)
    before = clone(state)
    made = get("open_lines").run(x, start, state, None)
    fresh, slot = 2, int(x.slot_ids[2])
    first = int(x.row_offsets[fresh])
    assert bool(x.reset[fresh])
    assert made.positions[first : first + 3].tolist() == [0, 1, 2]
    assert made.feedback[fresh].tolist() == start.tolist()
    assert (int(state.rows[slot]), int(state.frames[slot])) == (0, 0)
    assert int(state.feedback.parity[slot]) == 0
    others = torch.arange(len(state.rows)) != slot
    assert torch.equal(state.rows[others], before.rows[others])
    assert made.positions[int(x.row_offsets[-1]) :].eq(0).all()


def test_a_line_that_is_not_finite_stays_where_it_was() -> None:
    case = get("commit_lines").cases[1]
    x, _, state, _ = get("commit_lines").make_inputs(case)
    before = clone(state)
    made = get("commit_lines").run(x, None, state, None)
    assert made.ok.tolist() == [b not in (0, 2, 3) for b in range(case.B)]
    for b, slot in enumerate(x.slot_ids.tolist()):
        if slot < 0:
            continue
        moved = int(state.rows[slot]) == int(x.after[0, b])
        assert moved == (b not in (0, 2, 3))
        turned = int(state.feedback.parity[slot]) != int(before.feedback.parity[slot])
        assert turned == (moved and bool(x.emits[b])), "parity turns where a line spoke"
        if turned:
            last = [int(x.text_ids[-1, b]), *x.codes[-1, b].tolist()]
            kept = state.feedback.data[state.feedback.parity[slot], slot]
            assert kept.tolist() == last
    assert float(made.audio.abs().max()) <= 1


def test_a_line_that_does_not_speak_is_ok_whatever_its_numbers() -> None:
    x, _, state, _ = get("commit_lines").make_inputs(get("commit_lines").cases[0])
    silent = Said(**(vars(x) | {"emits": torch.tensor([False]), "audio": x.audio * torch.nan}))
    made = get("commit_lines").run(silent, None, state, None)
    assert made.ok.tolist() == [True]
    assert not made.audio.any()
