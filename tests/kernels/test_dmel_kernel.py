"""dmel's kernel: bins of what is hard for a transform, at the edges of bins, lines of all kinds.

`tests/kernels/test_triton.py` compares it with its reference over the cases.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sounds import frames_of, hops_of, signals
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.dmel.launch import dmel_kernel
from microturn.kernels.dmel.reference import core, dmel_reference
from microturn.kernels.dmel.weights import FLOOR, HOP, NUM_MELS, DMelWeights, dmel_weights
from microturn.kernels.redzones import place, redzones
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import assert_bitwise_equal, to_device
from microturn.kernels.tree import map_tensors

ROUNDING = 8 * 2.0**-24
"""Of any band's magnitude, as a share of the sum of a windowed frame's samples without sign."""


def on(device: str, audio: Tensor, weights: DMelWeights) -> Tensor:
    """What the kernel makes of whole sequences [N, F, 800]."""
    n, f, _ = audio.shape
    rows = RowBatch.build(list(range(n)), [f] * n, [0] * n, device=device)
    given = to_device(weights, device)
    return dmel_kernel(audio.flatten(0, 1).to(device), given, None, rows).cpu().view(n, f, NUM_MELS)


def possible(frames: Tensor, weights: DMelWeights) -> tuple[Tensor, Tensor]:
    """The least and the greatest bins that a transform with that rounding may give, from fp64."""
    windowed = frames.double() * weights.window
    magnitudes = torch.fft.rfft(windowed).abs()
    slack = ROUNDING * windowed.abs().sum(-1, keepdim=True)
    filters = weights.filters[:, :801].double()

    def bins(m: Tensor) -> Tensor:
        sums = m.clamp_min(FLOOR**0.5) @ filters.T
        return torch.bucketize(sums, weights.edges.double())

    return bins((magnitudes - slack) * (1 - 1e-6)), bins((magnitudes + slack) * (1 + 1e-6))


def test_hard_sounds_give_the_references_bins(device: str) -> None:
    """A bin may differ only where rounding decides it: in bands that hold little beside loud ones,
    the reference's own noise.
    """
    weights = dmel_weights()
    middles = [len(s) // 2 // HOP * HOP for s in signals().values()]
    audio = torch.stack(
        [
            hops_of(s[m : m + 2 * HOP])
            for s, m in zip(signals().values(), middles, strict=True)
            if m > HOP
        ]
    )
    got, want = on(device, audio, weights), core(audio, weights)
    least, most = possible(torch.stack([frames_of(a) for a in audio]), weights)
    assert bool(((least <= got) & (got <= most)).all())
    assert bool(((least <= want) & (want <= most)).all())
    assert float((least != most).double().mean()) < 0.02, "the bounds say something"
    assert int((got != want).sum()) <= 2
    assert len(torch.unique(got)) > 10


@pytest.mark.parametrize("mel", [3, 40, 77])
def test_a_bin_ends_where_the_references_does(mel: int, device: str) -> None:
    """Between the two gains that the reference tells apart last, and a millionth to each side."""
    weights, hop = dmel_weights(), torch.randn(1, HOP)
    start = int(core(0.05 * hop, weights)[0, mel])
    low, high = 0.05, 0.4
    while high - low > 3e-8:
        middle = (low + high) / 2
        above = int(core(middle * hop, weights)[0, mel]) > start
        low, high = (low, middle) if above else (middle, high)
    audio = torch.stack((low * (1 - 1e-6) * hop, high * (1 + 1e-6) * hop))
    assert on(device, audio, weights)[:, 0, mel].tolist() == [start, start + 1]
    assert core(audio, weights)[:, 0, mel].tolist() == [start, start + 1]


@pytest.mark.parametrize("kept", [True, False], ids=["state", "whole"])
def test_lines_of_all_kinds(kept: bool, device: str) -> None:
    """Padding, one that does not run, one that opens in a slot full of NaN, two under way; an
    output of another's; nothing of the arena changes but the copies that are not committed.
    """
    x = 0.1 * torch.randn(6, HOP)
    x[2] = float("nan")
    data = 0.1 * torch.randn(2, 5, HOP)
    data[:, 3] = float("nan")
    state = Twice(data, torch.tensor([0, 1, 0, 1, 1])) if kept else None
    rows = RowBatch.build(
        [-1, 1, 3, 0, 4],
        [1, 1, 1, 2, 1],
        [4, 4, 0, 9, 3],
        exec_mask=[True, False, True, True, True],
    )
    weights = dmel_weights()
    want_state = map_tensors(torch.clone, state)
    want = dmel_reference(x, weights, want_state, rows)
    with redzones() as zones:
        given = to_device((x, weights, state, rows), device)
        if device == "cpu":
            given = place(zones, given)
        out = torch.full((6, NUM_MELS + 3), -1, device=device)[:, :NUM_MELS]
        assert dmel_kernel(*given, out=out) is out
    assert torch.equal(out.cpu(), want)
    assert bool((want[2] == 0).all()), "NaN"
    assert bool((want[3:] > 0).any(1).all())
    if kept:
        assert_bitwise_equal(
            given[2].data.cpu().nan_to_num(7.0), want_state.data.nan_to_num(7.0), "state"
        )


def test_a_wrong_table_would_be_noticed(device: str) -> None:
    weights, audio = dmel_weights(), 0.1 * torch.randn(1, 1, HOP)
    want = core(audio, weights)
    assert torch.equal(on(device, audio, weights), want)
    wrong = {
        "twiddles": weights.twiddles.flip(0),
        "starts": weights.starts + 4,
        "edges": 4 * weights.edges,
    }
    for name, table in wrong.items():
        assert not torch.equal(on(device, audio, replace(weights, **{name: table})), want), name
