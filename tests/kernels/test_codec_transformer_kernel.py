"""The Triton kernel of codec_transformer: streams in any cut and company, arenas of either kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.kernels import configs
from microturn.kernels.arena import LEAF, Pages, Ring
from microturn.kernels.codec_transformer import CodecTransformerWeights
from microturn.kernels.codec_transformer.cases import (
    BENCH_CASES,
    CASES,
    CodecTransformerCase,
    make_inputs,
)
from microturn.kernels.codec_transformer.launch import codec_transformer_kernel
from microturn.kernels.codec_transformer.reference import codec_transformer_reference
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention import KVState
from microturn.kernels.testing import (
    assert_bitwise_equal,
    assert_close,
    error_ratio,
    ordered_dots,
    to_device,
)

SMALL = CodecTransformerCase(2, 3, 0, 2, 32, 2, 48, 20, "two layers, a window of several steps")


def weights_of(case: CodecTransformerCase, device: str) -> CodecTransformerWeights:
    weights: CodecTransformerWeights = to_device(make_inputs(case).weights, device)
    return weights


def rings(case: CodecTransformerCase, slots: int, device: str) -> list[KVState]:
    """Arenas full of NaN."""

    def ring() -> Ring:
        shape = (slots, LEAF, case.H, case.D // case.H)
        return Ring(torch.full(shape, float("nan"), device=device))

    return [KVState(ring(), ring()) for _ in range(case.N)]


def stream(
    feeds: dict[int, Tensor],
    cuts: Sequence[dict[int, int]],
    weights: CodecTransformerWeights,
    state: Sequence[KVState],
    device: str,
    start: int = 0,
) -> dict[int, Tensor]:
    """What comes out of each slot's feed, step by step: `cuts` gives the rows each slot brings."""
    done = dict.fromkeys(feeds, 0)
    parts: dict[int, list[Tensor]] = {slot: [] for slot in feeds}
    for cut in cuts:
        lines = [(slot, count, start + done[slot]) for slot, count in cut.items()]
        rows = RowBatch.build(*zip(*lines, strict=True), device=device)
        x = torch.cat([feeds[slot][done[slot] : done[slot] + n] for slot, n in cut.items()])
        y = codec_transformer_kernel(x, weights, state, rows).split(list(cut.values()))
        for (slot, count), piece in zip(cut.items(), y, strict=True):
            parts[slot].append(piece)
            done[slot] += count
    return {slot: torch.cat(pieces) for slot, pieces in parts.items()}


@torch.inference_mode()
def test_bits_depend_neither_on_the_cut_nor_on_the_company(device: str) -> None:
    """Rows alone, rows among others, and more of a line than attend together, past a leaf."""
    weights = weights_of(SMALL, device)
    generator = torch.Generator().manual_seed(1)
    feeds = {
        slot: torch.randn(n, 32, generator=generator).to(device) for slot, n in ((1, 26), (0, 8))
    }
    start = LEAF - 6
    with ordered_dots():
        runs = []
        for cuts in (
            [{1: 26, 0: 8}],
            [{1: 2, 0: 3}, {1: 19}, {0: 5, 1: 5}],
            [{1: 1}, {1: 20}, {1: 5}, {0: 8}],
        ):
            state = rings(SMALL, 2, device)
            for kv in state:
                for arena in (kv.k, kv.v):
                    # A past, the same for every run.
                    arena.data[:, :start] = (
                        0.1 * torch.arange(start, device=device)[None, :, None, None].sin()
                    )
            runs.append(stream(feeds, cuts, weights, state, device, start))
    for other in runs[1:]:
        for slot in feeds:
            assert_bitwise_equal(other[slot], runs[0][slot])


@torch.inference_mode()
def test_a_stream_is_what_the_whole_sequence_gives(device: str) -> None:
    """From arenas of NaN, two lines out of step; a window one key shorter would be seen."""
    weights = weights_of(SMALL, device)
    feeds = {s: torch.randn(40, 32, generator=torch.Generator().manual_seed(s)) for s in (0, 1)}
    moved = {slot: feed.to(device) for slot, feed in feeds.items()}
    cuts = [{0: 3, 1: 17}, {0: 37, 1: 23}]
    got = stream(moved, cuts, weights, rings(SMALL, 2, device), device)
    on_host = to_device(weights, "cpu")
    narrow = dataclasses.replace(on_host, window=on_host.window - 1)
    for slot, feed in feeds.items():
        whole = codec_transformer_reference(feed, on_host)
        assert_close(got[slot].cpu(), whole, 1e-5)
        assert error_ratio(got[slot].cpu(), codec_transformer_reference(feed, narrow)) > 1e-4
        assert_close(codec_transformer_kernel(moved[slot], weights).cpu(), whole, 1e-5, "no state")


@torch.inference_mode()
def test_pages_hold_what_a_ring_holds(device: str) -> None:
    weights = weights_of(SMALL, device)
    feed = torch.randn(30, 32, generator=torch.Generator().manual_seed(3)).to(device)
    start = 3 * LEAF - 10
    table = torch.tensor([[5, 0, 3], [2, 4, 1]], dtype=torch.int32, device=device)

    def pages() -> Pages:
        return Pages(torch.zeros(6, LEAF, 2, 16, device=device), table)

    def ring() -> Ring:
        return Ring(torch.zeros(2, 3 * LEAF, 2, 16, device=device))

    paged = [KVState(pages(), pages()) for _ in range(2)]
    ringed = [KVState(ring(), ring()) for _ in range(2)]
    cuts = [{1: 7}, {1: 23}]
    got = stream({1: feed}, cuts, weights, paged, device, start)[1]
    assert_bitwise_equal(got, stream({1: feed}, cuts, weights, ringed, device, start)[1])
    for a, b in zip(paged, ringed, strict=True):
        assert torch.equal(a.k.data[table[1].long()].flatten(0, 1), b.k.data[1])
        assert not bool(a.v.data[table[0].long()].any())


@torch.inference_mode()
def test_lines_that_do_not_run_are_zeros_and_touch_nothing(device: str) -> None:
    weights, state = weights_of(SMALL, device), rings(SMALL, 3, device)
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(4)).to(device)
    alone = stream({2: x[4:6]}, [{2: 2}], weights, rings(SMALL, 3, device), device)[2]
    x[:4] = float("nan")
    x[6:] = float("nan")
    rows = RowBatch.build(
        [0, -1, 2], [2, 2, 2], [0, 0, 0], exec_mask=[False, True, True], device=device
    )
    padded = dataclasses.replace(
        rows, positions=torch.cat([rows.positions, rows.positions[:2]]), max_line_rows=2
    )
    y = codec_transformer_kernel(x, weights, state, padded)
    assert_bitwise_equal(y[4:6], alone)
    assert not bool(y[:4].any())
    assert not bool(y[6:].any())
    for kv in state:
        assert bool(kv.k.data[:2].isnan().all())
        assert bool(kv.k.data[2, 2:].isnan().all())
        assert not bool(kv.v.data[2, :2].isnan().any())


@torch.inference_mode()
def test_late_positions_turn_exactly(device: str) -> None:
    """Past position 2^24, where fp32 no longer tells neighbours apart."""
    weights = weights_of(SMALL, device)
    feed = torch.randn(24, 32, generator=torch.Generator().manual_seed(5))
    start = (1 << 25) // LEAF * LEAF + 77
    state, other = rings(SMALL, 1, device), rings(SMALL, 1, "cpu")
    for kv in (*state, *other):
        kv.k.data.fill_(0.5)
        kv.v.data.fill_(-0.5)
    got = stream({0: feed.to(device)}, [{0: 5}, {0: 19}], weights, state, device, start)[0]
    rows = RowBatch.build([0], [24], [start])
    want = codec_transformer_reference(feed, to_device(weights, "cpu"), other, rows)
    assert_close(got.cpu(), want, 1e-5)
    assert_close(state[1].k.data.cpu(), other[1].k.data, 1e-5, "keys")


@torch.inference_mode()
def test_a_wrong_kernel_would_be_seen(device: str) -> None:
    weights = weights_of(SMALL, device)
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(6))
    got = codec_transformer_kernel(x.to(device), weights).cpu()
    on_host = to_device(weights, "cpu")

    def changed(**change: Any) -> Tensor:
        layers = (on_host.layers[0], dataclasses.replace(on_host.layers[1], **change))
        return codec_transformer_reference(x, dataclasses.replace(on_host, layers=layers))

    layer = on_host.layers[1]
    assert_close(got, changed(), 1e-5)
    for change in (
        {"norm1_bias": layer.norm2_bias},
        {"norm2_gain": layer.norm1_gain},
        {"scale1": layer.scale2},
        {"in_proj": layer.in_proj.roll(32, 0)},
        {"ff_out": on_host.layers[0].ff_out},
    ):
        assert error_ratio(changed(**change), got) > 1e-3, change
    wrong = codec_transformer_reference(x, dataclasses.replace(on_host, rope_theta=500.0))
    assert error_ratio(wrong, got) > 1e-3


def test_what_the_kernel_cannot_take_is_refused(device: str) -> None:
    weights, state = weights_of(SMALL, device), rings(SMALL, 1, device)
    x = torch.zeros(1, 32, device=device)
    rows = RowBatch.build([0], [1], [0], device=device)
    with pytest.raises(ValueError, match="heads of 16, 32, 64"):
        codec_transformer_kernel(x, dataclasses.replace(weights, num_heads=4))
    strided = dataclasses.replace(weights.layers[0], in_proj=weights.layers[0].in_proj.t())
    with pytest.raises(ValueError, match="in_proj must be contiguous"):
        wrong = dataclasses.replace(weights, layers=(strided, weights.layers[1]))
        codec_transformer_kernel(x, wrong, state, rows)
    longer = KVState(*(Ring(torch.zeros(1, 2 * LEAF, 2, 16, device=device)) for _ in range(2)))
    with pytest.raises(ValueError, match="arenas of layers 0 and 1 differ"):
        codec_transformer_kernel(x, weights, [state[0], longer], rows)


def test_no_entry_of_the_table_is_dead() -> None:
    reached = {
        str(configs.choose("codec_transformer", T=c.S * c.L)) for c in (*CASES, *BENCH_CASES)
    }
    assert reached == {str(entry["use"]) for entry in configs.table("codec_transformer")}
