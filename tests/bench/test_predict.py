"""The model behind predicted times, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from microturn.bench import predict
from microturn.bench.predict import Part, predict_us
from microturn.kernels.compiled import Binary

BINARY = Binary("k", 64, 0, 96 * 1024, 128, {"LDGSTS.E.BYPASS.128": 8, "HGMMA.64x16x16": 4})
PART = Part("k", 132, BINARY, 64 * 1024.0, 1000)
FIXED = predict.BOUNDARY_US + predict.LATENCY_US


def test_a_full_machine_reads_at_the_ceiling_and_pays_once_to_start() -> None:
    assert BINARY.blocks_per_sm == 2
    assert predict_us([PART], 44_000_000, 0) == pytest.approx(FIXED + 10.0)


def test_too_few_bytes_in_flight_read_slower() -> None:
    thin = replace(PART, in_flight=13_000.0)
    rate = 132 * 13_000 / predict.LATENCY_US / 1e6
    assert rate < predict.READ_TBPS
    assert predict_us([thin], 44_000_000, 0) == pytest.approx(FIXED + 44 / rate)


def test_a_last_round_of_few_blocks_reads_at_their_rate() -> None:
    full = replace(PART, blocks=2 * 132)
    over = replace(PART, blocks=2 * 132 + 8)
    alone = 8 * 64 * 1024 / predict.LATENCY_US / 1e6
    nbytes = 272 * 1_000_000
    expected = FIXED + 264 / predict.READ_TBPS + 8 / alone
    assert predict_us([over], nbytes, 0) == pytest.approx(expected)
    assert predict_us([full], 264_000_000, 0) == pytest.approx(FIXED + 60.0)


def test_arithmetic_counts_where_it_is_longer_and_uneven_blocks_wait() -> None:
    assert predict_us([PART], 44_000_000, 78_000_000_000) == pytest.approx(FIXED + 100.0)
    uneven = replace(PART, blocks=133)
    assert uneven.compute_us(133e6 * 780) == pytest.approx(2 * 132, rel=1e-6)
    slow = replace(BINARY, instructions={"HMMA.16816": 4})
    assert replace(PART, binary=slow).compute_us(78e9) == pytest.approx(100 / 0.62)
    none = replace(BINARY, instructions={"LDG.E.128": 4})
    assert replace(PART, binary=none).compute_us(60e9) == pytest.approx(1000)


def test_launches_share_the_bytes_and_later_ones_start_sooner_under_pdl() -> None:
    parts = [replace(PART, nbytes=3000), replace(PART, nbytes=1000)]
    plain = predict_us(parts, 44_000_000, 0)
    assert plain == pytest.approx(2 * FIXED + 10.0)
    chained = [replace(part, pdl=True) for part in parts]
    assert predict_us(chained, 44_000_000, 0) == pytest.approx(plain - predict.PDL_BACK_US)


def test_a_barrier_costs_a_stage() -> None:
    with_five = predict_us([replace(PART, barriers=5)], 44_000_000, 0)
    assert with_five == pytest.approx(FIXED + 10.0 + 5 * predict.STAGE_US)


def test_bytes_in_flight_are_read_from_the_pipelines_buffers() -> None:
    text = """
    %w = ttg.local_alloc : () -> !ttg.memdesc<4x64x128xbf16, #shared, #smem, mutable>
    %s = ttg.local_alloc : () -> !ttg.memdesc<3x64xi8, #shared2, #smem, mutable>
    %c = ttg.local_alloc %y : (tensor<64x16xf32>) -> !ttg.memdesc<64x16xf32, #shared1, #smem>
    """
    assert predict.in_flight(BINARY, text) == 3 * 64 * 128 * 2 + 2 * 64
    assert predict.in_flight(replace(BINARY, shared=4096), text) == 4096
    loads = replace(BINARY, instructions={"LDG.E.128": 4, "LDG.E.128.CONSTANT": 1, "LDG.E": 9})
    assert predict.in_flight(loads, "") == 16 * 5 * 128
