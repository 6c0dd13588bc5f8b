"""dmel: values against an fp64 transform, bits against cuts and company, bins against the released
extractor.
"""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import torch
from sounds import HOP, RATE, frames_of, hops_of, signals
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.dmel import DMelWeights, dmel, dmel_spec, dmel_weights
from microturn.kernels.dmel.cases import CASES, DMelCase, make_inputs
from microturn.kernels.dmel.reference import core, mel_sums
from microturn.kernels.dmel.weights import bin_edges, mel_filters, nearest
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import assert_bitwise_equal, assert_close, error_ratio

MELS = 80


def noise(hops: int) -> Tensor:
    """Loud to faint, so that many bins occur."""
    return 0.3 * torch.logspace(0, -4, hops)[:, None] * torch.randn(hops, HOP)


def arena(num_slots: int) -> Twice:
    spec = dmel_spec("dmel")
    data = torch.full((2, num_slots, *spec.shape), float("nan"))
    return Twice(data, torch.zeros(num_slots, dtype=torch.int64))


def commit(state: Twice, rows: RowBatch) -> None:
    state.parity[rows.line_slots] ^= 1


def naive_log_mel(frame: Tensor) -> Tensor:
    """One frame [1600] by the definition of the transform, in fp64."""
    n = torch.arange(1600, dtype=torch.float64)
    windowed = frame.double() * (0.5 - 0.5 * torch.cos(2 * math.pi * n / 1600))
    turns = torch.outer(torch.arange(801, dtype=torch.float64), n) % 1600 / 1600
    real = (windowed * torch.cos(2 * math.pi * turns)).sum(-1)
    imaginary = (windowed * torch.sin(2 * math.pi * turns)).sum(-1)
    magnitude = (real.square() + imaginary.square()).clamp(min=1e-10).sqrt()
    return (mel_filters() @ magnitude).clamp(min=1e-10).log10()


def test_filters_are_triangles_of_area_one_even_in_mel() -> None:
    filters = mel_filters()
    assert filters.shape == (MELS, 801)
    assert_close(filters[40:].sum(1) * 10, torch.ones(40), 3e-3)
    peaks = filters.argmax(1) * 10
    assert bool((peaks.diff() > 0).all())
    low = peaks[peaks < 900].double()
    high = peaks[peaks > 1500].double()
    assert float((low.diff() - low.diff().mean()).abs().max()) <= 10, "even in Hz below 1 kHz"
    assert float((high[1:] / high[:-1]).log().std()) < 0.01, "even in octaves above"
    assert bool((filters[:, [0, 800]] == 0).all())


def test_log_mel_matches_the_definition() -> None:
    audio = noise(5)
    got = mel_sums(frames_of(audio), dmel_weights()).log10()
    want = torch.stack([naive_log_mel(frame) for frame in frames_of(audio)])
    assert float((got - want).abs().max()) < 3e-6


def test_an_edge_is_the_largest_sum_of_its_bin() -> None:
    """Among the 129 numbers around each edge, comparisons with edges give what `nearest` gives."""
    weights = dmel_weights()
    around = weights.edges[:-1].view(torch.int32)[:, None] + torch.arange(-64, 65).int()
    sums = around.view(torch.float32)
    above = (sums[..., None] > weights.edges).sum(-1)
    assert torch.equal(above, nearest(sums, weights.centres))
    assert torch.equal(above[:, 64], torch.arange(15))
    assert torch.equal(above[:, 65], torch.arange(1, 16))
    assert int(nearest(torch.tensor([float("nan")]), weights.centres)) == 0


def test_known_sounds_fall_into_known_bins() -> None:
    weights = dmel_weights()
    assert bool((core(torch.zeros(3, HOP), weights) == 2).all())
    sine = torch.sin(2 * math.pi * 1000 * torch.arange(5 * HOP) / RATE).view(5, HOP)
    bins = core(sine, weights)
    assert int(bins[2].max()) == 14
    assert abs(int(mel_filters()[int(bins[2].argmax())].argmax()) * 10 - 1000) <= 60


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_case_is_the_whole_sequence_of_each_line(case: DMelCase) -> None:
    x, weights, state, rows = make_inputs(case)
    before = state.read(torch.arange(case.B + 2)).clone()
    got = dmel(x, weights, state, rows)
    assert got.shape == (case.B * case.F, MELS)
    assert got.dtype == torch.int64
    for line in rows.lines:
        mine = x[line.start : line.stop]
        if line.position:
            want = core(torch.cat((before[line.slot, None], mine)), weights)[1:]
        else:
            want = core(mine, weights)
        assert torch.equal(got[line.start : line.stop], want)
        assert_bitwise_equal(state.data[1 - state.parity[line.slot], line.slot], mine[-1])
    assert torch.equal(state.read(torch.arange(case.B + 2)), before), "nothing is committed yet"


def test_any_cut_gives_the_bins_of_the_whole_sequence() -> None:
    weights, state = dmel_weights(), arena(4)
    streams = {slot: noise(23) for slot in (3, 0, 2)}
    at = dict.fromkeys(streams, 0)
    heard: dict[int, list[Tensor]] = {slot: [] for slot in streams}
    while any(at[slot] < 23 for slot in streams):
        slots = [slot for slot in streams if at[slot] < 23]
        random.shuffle(slots)
        counts = [min(23 - at[slot], random.randint(0, 4)) for slot in slots]
        starts = [at[slot] for slot in slots]
        rows = RowBatch.build(slots, counts, starts)
        parts = [streams[slot][s : s + c] for slot, s, c in zip(slots, starts, counts, strict=True)]
        bins = dmel(torch.cat(parts), weights, state, rows)
        commit(state, rows)
        for slot, part in zip(slots, torch.split(bins, counts), strict=True):
            heard[slot].append(part)
            at[slot] += part.shape[0]
    for slot, stream in streams.items():
        whole = core(stream, weights)
        assert torch.equal(torch.cat(heard[slot]), whole)
        assert len(torch.unique(whole)) > 6
        assert not torch.equal(core(stream[1:], weights), whole[1:]), "the hop before counts"


def test_sums_bits_do_not_depend_on_the_batch() -> None:
    frames, weights = frames_of(noise(19)), dmel_weights()
    together = mel_sums(frames, weights)
    for t in range(19):
        assert_bitwise_equal(mel_sums(frames[t : t + 1], weights), together[t : t + 1])
    order = torch.randperm(19)
    assert_bitwise_equal(mel_sums(frames[order], weights), together[order])


def test_without_state_every_line_starts_from_silence() -> None:
    weights, x = dmel_weights(), noise(11)
    rows = RowBatch.build([4, 1, -1, 2], [3, 5, 1, 2], [7, 0, 3, 9])
    got = dmel(x, weights, None, rows)
    assert torch.equal(got[:3], core(x[:3], weights))
    assert torch.equal(got[3:8], core(x[3:8], weights))
    assert bool((got[8] == 0).all())
    assert torch.equal(got[9:], core(x[9:], weights))


def test_lines_that_do_not_run_change_nothing() -> None:
    weights, x = dmel_weights(), noise(6)
    state = arena(3)
    state.data.normal_()
    before = state.data.clone()
    rows = RowBatch.build([0, -1, 2], [2, 2, 2], [5, 5, 5], exec_mask=[False, True, True])
    out = torch.full((6, MELS), -1)
    assert dmel(x, weights, state, rows, out=out) is out
    assert bool((out[:4] == 0).all())
    want = core(torch.cat((before[0, 2, None], x[4:])), weights)[1:]
    assert torch.equal(out[4:], want)
    assert_bitwise_equal(state.data[:, :2], before[:, :2])
    assert_bitwise_equal(state.data[0, 2], before[0, 2])
    none = RowBatch.build([0], [6], [0], exec_mask=[False])
    assert bool((dmel(x, weights, state, none) == 0).all())


def test_bad_arguments_say_what_is_wanted() -> None:
    weights, rows = dmel_weights(), RowBatch.build([0], [2], [0])
    with pytest.raises(ValueError, match=r"dmel: x must be \[T, 800\], got \[2, 640\]"):
        dmel(torch.zeros(2, 640), weights, None, rows)
    with pytest.raises(TypeError, match=r"x must be torch.float32, got torch.int16"):
        dmel(torch.zeros(2, 800, dtype=torch.int16), weights, None, rows)
    with pytest.raises(ValueError, match="rows describes 2 rows, the input has 3"):
        dmel(torch.zeros(3, 800), weights, None, rows)


def released_bins(extractor: Any, samples: Tensor) -> Tensor:
    features = extractor(samples, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
    centres = torch.linspace(-7.0, 2.0, 16, dtype=torch.float64).float()
    bins: Tensor = (features.clamp(-7, 2)[..., None] - centres).abs().argmin(-1)
    return bins


@pytest.mark.oracle
@torch.no_grad()
def test_every_bin_equals_the_released_extractor() -> None:
    """If a platform's products round otherwise a bin may flip where the level is within 1e-6 of the
    middle between two centres: one in some 300,000.
    """
    module = pytest.importorskip("transformers.models.inkling.feature_extraction_inkling")
    extractor = module.InklingFeatureExtractor()
    weights, compared = dmel_weights(), 0
    assert_bitwise_equal(weights.filters[:, :801], extractor.mel_filters)
    assert not bool(weights.filters[:, 801:].any())
    assert_bitwise_equal(weights.window, extractor.window)
    for name, samples in signals().items():
        want = released_bins(extractor, samples)
        got = core(hops_of(samples), weights)
        assert got.shape == want.shape, name
        assert torch.equal(got, want), name
        compared += got.numel()
    assert compared > 100_000


@pytest.mark.oracle
@torch.no_grad()
def test_a_wrong_centre_filter_window_or_power_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = pytest.importorskip("transformers.models.inkling.feature_extraction_inkling")
    samples = signals()["speech"]
    want = released_bins(module.InklingFeatureExtractor(), samples)
    audio, weights = hops_of(samples), dmel_weights()
    assert torch.equal(core(audio, weights), want)

    def wrong(**change: Tensor) -> DMelWeights:
        return dataclasses.replace(weights, **change)

    centres = weights.centres.clone()
    centres[8] += 0.02
    symmetric = torch.hann_window(1600, periodic=False)
    for changed in (
        wrong(centres=centres, edges=bin_edges(centres)),
        wrong(filters=weights.filters.roll(1, 1)),
        wrong(window=symmetric),
    ):
        assert not torch.equal(core(audio, changed), want)
    loudness = mel_sums(frames_of(audio), weights)
    monkeypatch.setattr(Tensor, "sqrt", lambda self: self)
    assert error_ratio(mel_sums(frames_of(audio), weights), loudness) > 0.1
    assert not torch.equal(core(audio, weights), want)
