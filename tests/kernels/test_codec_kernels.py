"""The Triton kernels of the codec's convolutions and quantiser: streams, bits, and planted bugs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.kernels import configs
from microturn.kernels.arena import Twice
from microturn.kernels.causal_conv.cases import ConvCase
from microturn.kernels.causal_conv.launch import parameters as conv_parameters
from microturn.kernels.conv_transpose.cases import ConvTransposeCase
from microturn.kernels.registry import OPS
from microturn.kernels.residual_unit import launch as unit_launch
from microturn.kernels.residual_unit.cases import ResidualUnitCase
from microturn.kernels.rows import RowBatch, _FinerRows
from microturn.kernels.testing import (
    MAX_ERROR,
    assert_bitwise_equal,
    assert_close,
    compare,
    error_ratio,
    ordered_dots,
    shuffled_programs,
)

CARRYING = ("causal_conv", "conv_transpose", "residual_unit")
SMALL: dict[str, tuple[Any, ...]] = {
    "causal_conv": (
        ConvCase(1, 4, 16, 24, 7, 1, "fewer rows than history"),
        ConvCase(1, 4, 5, 9, 4, 2, "odd widths, stride, replicated start", replicate=True),
        ConvCase(1, 4, 80, 24, 8, 4, "a window in two splits"),
    ),
    "conv_transpose": (
        ConvTransposeCase(1, 4, 16, 24, 6, 3, "two inputs reach an output"),
        ConvTransposeCase(1, 4, 7, 9, 9, 3, "three inputs reach an output, odd widths"),
        ConvTransposeCase(1, 4, 576, 8, 4, 2, "a split for each input that reaches an output"),
        ConvTransposeCase(1, 4, 20, 20, 4, 2, "depthwise", True),
    ),
    "residual_unit": (
        ResidualUnitCase(1, 4, 16, 8, 3, "one launch"),
        ResidualUnitCase(1, 4, 9, 7, 5, "odd widths"),
        ResidualUnitCase(1, 4, 288, 16, 3, "two launches, the first in two splits"),
    ),
}
SHAPES = [pytest.param(op, case, id=f"{op}-{case.id}") for op in CARRYING for case in SMALL[op]]
SPLIT = [
    pytest.param("causal_conv", ConvCase(3, 4, 96, 20, 17, 1, "four splits"), id="four"),
    pytest.param("causal_conv", ConvCase(3, 8, 96, 20, 44, 4, "eight splits"), id="eight"),
    pytest.param(
        "causal_conv", ConvCase(9, 2, 96, 20, 44, 1, "eight splits, more rows"), id="rows"
    ),
    *(
        pytest.param(op, replace(case, S=5), id=f"{op}-{case.id}")
        for op in CARRYING
        for case in SMALL[op][-2:]
    ),
]


def fresh(state: Twice | None, num_slots: int, device: str) -> Twice | None:
    """Arenas as a runtime allocates them: whatever was there, here NaN."""
    if state is None:
        return None
    shape = (2, num_slots, *state.data.shape[2:])
    data = torch.full(shape, float("nan"), dtype=state.data.dtype, device=device)
    return Twice(data, torch.zeros(num_slots, dtype=torch.int64, device=device))


def prepared(op: str, case: Any, device: str) -> tuple[Any, Twice | None, int, int]:
    """weights, a fresh state of three slots, rows a line must bring together, width of x."""
    x, weights, state, _ = OPS[op].make_inputs(case, device=device)
    unit = getattr(weights, "stride", 1) if op == "causal_conv" else 1
    return weights, fresh(state, 3, device), unit, int(x.shape[1])


def stream(
    op: str,
    weights: Any,
    state: Twice | None,
    sequences: dict[int, Tensor],
    unit: int,
    *,
    flips: bool = True,
    spoil: Callable[[Twice], None] = lambda state: None,
) -> dict[int, Tensor]:
    """Every sequence through the kernel in random cuts, random subsets of slots in each call."""
    choose = random.Random(5)
    done = dict.fromkeys(sequences, 0)
    parts: dict[int, list[Tensor]] = {slot: [] for slot in sequences}
    while any(done[s] < len(sequences[s]) for s in sequences):
        ready = [s for s in sequences if done[s] < len(sequences[s]) and choose.random() < 0.8]
        if not ready:
            continue
        choose.shuffle(ready)
        counts = [min(unit * choose.randint(1, 5), len(sequences[s]) - done[s]) for s in ready]
        device = sequences[ready[0]].device
        rows = RowBatch.build(ready, counts, [done[s] for s in ready], device=device)
        cuts = zip(ready, counts, strict=True)
        x = torch.cat([sequences[s][done[s] : done[s] + c] for s, c in cuts])
        y = OPS[op].kernel(x, weights, state, rows)
        pieces = y.split([c * len(y) // len(x) for c in counts])
        for slot, count, piece in zip(ready, counts, pieces, strict=True):
            parts[slot].append(piece)
            done[slot] += count
        if state is not None and flips:
            state.parity[ready] = 1 - state.parity[ready]
        if state is not None:
            spoil(state)
    return {slot: torch.cat(parts[slot]) for slot in sequences}


def sequences(width: int, unit: int, device: str) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        slot: torch.randn(unit * length, width, generator=generator).to(device)
        for slot, length in ((2, 9), (0, 5), (1, 6))
    }


@pytest.mark.parametrize(("op", "case"), SHAPES)
@torch.no_grad()
def test_any_cut_in_any_company_gives_the_bits_of_the_whole_sequence(
    op: str, case: Any, device: str
) -> None:
    """From slots full of NaN, among others, ragged; and the bits of a line alone."""
    weights, state, unit, width = prepared(op, case, device)
    wholes = sequences(width, unit, device)
    with ordered_dots() if device == "cpu" else nullcontext():
        got = stream(op, weights, state, wholes, unit)
        for slot, whole in wholes.items():
            assert_bitwise_equal(got[slot], OPS[op].kernel(whole, weights), f"slot {slot}")
    for slot, whole in wholes.items():
        assert_close(got[slot].cpu(), OPS[op].reference(whole.cpu(), cpu(weights)), 1e-5)


def cpu(weights: Any) -> Any:
    from microturn.kernels.testing import to_device

    return to_device(weights, "cpu")


@pytest.mark.parametrize(("op", "case"), SHAPES)
@torch.no_grad()
def test_a_line_keeps_its_bits_where_more_rows_choose_other_tiles(
    op: str, case: Any, device: str
) -> None:
    weights, _, unit, width = prepared(op, case, device)
    lengths = [unit * n for n in (3, 140, 1)]
    x = torch.randn(sum(lengths), width, device=device)
    rows = RowBatch.build([0, 1, 2], lengths, [0, 0, 0], device=device)
    with ordered_dots() if device == "cpu" else nullcontext():
        together = OPS[op].kernel(x, weights, None, rows)
        alone = torch.cat([OPS[op].kernel(part, weights) for part in x.split(lengths)])
    assert_bitwise_equal(together, alone)


@pytest.mark.parametrize(("op", "case"), SPLIT)
def test_shapes_that_are_split_match_in_any_order_of_programs(
    op: str, case: Any, device: str
) -> None:
    for seed in (0, 1):
        with shuffled_programs(seed) if device == "cpu" else nullcontext():
            compared = compare(OPS[op], case, "fp32", device=device)
        assert compared.result <= MAX_ERROR["fp32"]
        assert compared.state <= MAX_ERROR["fp32"]


@pytest.mark.parametrize(("op", "case"), SHAPES)
@torch.no_grad()
def test_rows_of_a_finer_rate_are_found_from_the_callers(op: str, case: Any, device: str) -> None:
    """As a GPU gets them: the frames' rows and how many rows here stand for one."""
    weights, _, unit, width = prepared(op, case, device)
    up = 2 * unit
    frames = RowBatch.build(
        [2, -1, 0, 1],
        [2, 1, 3, 1],
        [4, 0, 0, 9],
        exec_mask=[True, True, True, False],
        device=device,
    )
    x = torch.randn(7 * up, width, device=device)
    states = []
    results = []
    for rows in (_FinerRows(frames, up), plain_finer(frames, up)):
        torch.manual_seed(1)
        _, state, _, _ = prepared(op, case, device)
        if state is not None:
            state.data.copy_(torch.randn(state.data.shape))
        results.append(OPS[op].kernel(x, weights, state, rows))
        states.append(state)
    assert_bitwise_equal(results[0], results[1])
    if states[0] is not None and states[1] is not None:
        assert_bitwise_equal(states[0].data, states[1].data)


def plain_finer(rows: RowBatch, up: int) -> RowBatch:
    """The same with its tensors written out."""
    steps = torch.arange(up, device=rows.positions.device)
    positions = (rows.positions[:, None] * up + steps).reshape(-1)
    return RowBatch(rows.slot_ids, rows.row_offsets * up, positions, rows.exec_mask)


@pytest.mark.parametrize(("op", "case"), SHAPES)
@torch.no_grad()
def test_lines_that_do_not_run_change_nothing_and_are_zeros(
    op: str, case: Any, device: str
) -> None:
    weights, state, unit, width = prepared(op, case, device)
    counts = [2 * unit, unit, 3 * unit]
    rows = RowBatch.build(
        [2, -1, 0], counts, [0, 0, 0], exec_mask=[True, True, False], device=device
    )
    more = replace(rows, positions=torch.cat([rows.positions, rows.positions[:unit]]))
    x = torch.randn(sum(counts) + unit, width, device=device)
    x[counts[0] :] = float("nan")  # other lines' rows, and rows past the last line
    y = OPS[op].kernel(x, weights, state, more)
    out = counts[0] * len(y) // len(x)
    assert_close(y[:out], OPS[op].kernel(x[: counts[0]], weights), 1e-6)
    assert int(y[out:].count_nonzero()) == 0
    if state is not None:
        written = [bool(torch.isfinite(state.data[:, slot]).any()) for slot in range(3)]
        assert written == [False, False, True]
        assert bool(state.data[0, 2].isnan().all()), "the committed copy may not be written"


@pytest.mark.parametrize("op", CARRYING)
@torch.no_grad()
def test_a_tail_that_is_not_flipped_is_caught(op: str, device: str) -> None:
    """The control of the streams above: every call reads what an earlier one left."""
    weights, state, unit, width = prepared(op, SMALL[op][0], device)
    wholes = sequences(width, unit, device)
    got = stream(op, weights, state, wholes, unit, flips=False)
    whole = OPS[op].kernel(wholes[2], weights)
    assert not error_ratio(got[2].nan_to_num(9.0), whole) < 1e-3


@torch.no_grad()
def test_a_bias_in_the_overlap_and_a_wrong_phase_are_caught(device: str) -> None:
    weights, state, unit, width = prepared("conv_transpose", SMALL["conv_transpose"][0], device)
    wholes = sequences(width, unit, device)
    bias = weights.bias.repeat(weights.stride)

    def spoil(kept: Twice) -> None:
        kept.data.add_(bias)

    got = stream("conv_transpose", weights, state, wholes, unit, spoil=spoil)
    whole = OPS["conv_transpose"].kernel(wholes[2], weights)
    assert error_ratio(got[2], whole) > 1e-2
    turned = replace(weights, weight=weights.weight.roll(1, 0))
    assert error_ratio(OPS["conv_transpose"].kernel(wholes[2], turned), whole) > 1e-2


@torch.no_grad()
def test_a_unit_gives_the_same_bits_in_one_launch_and_in_two(device: str) -> None:
    x, weights, state, rows = OPS["residual_unit"].make_inputs(
        ResidualUnitCase(3, 7, 32, 24, 3, ""), device=device
    )
    one, two = torch.empty_like(x), torch.empty_like(x)
    config = configs.choose("residual_unit", C=32)
    assert config.pop("FUSED")
    with ordered_dots() if device == "cpu" else nullcontext():
        unit_launch._fused(x, weights, state, rows, one, config)
        unit_launch._apart(x, weights, state, rows, two)
    assert_bitwise_equal(one, two)


@torch.no_grad()
def test_audio_in_fp32_meets_narrow_weights_in_fp32(device: str) -> None:
    """The encoder's first convolution, and what leaves the decoder's last."""
    case = ConvCase(2, 8, 1, 24, 7, 1, "", elu=False)
    x, weights, state, rows = OPS["causal_conv"].make_inputs(case, device=device)
    narrow = replace(weights, weight=weights.weight.half(), bias=weights.bias.half())
    wide = replace(narrow, weight=narrow.weight.float(), bias=narrow.bias.float())
    want = OPS["causal_conv"].kernel(x, wide, state, rows)
    got = OPS["causal_conv"].kernel(x, narrow, state, rows)
    assert got.dtype == torch.float16
    assert_bitwise_equal(got, want.half())
    out = torch.empty_like(want)
    OPS["causal_conv"].kernel(x.half(), narrow, None, rows, out=out)
    assert out.dtype == torch.float32
    assert bool(torch.isfinite(out).all())


def test_kept_inputs_of_another_dtype_are_refused_in_words(device: str) -> None:
    x, weights, state, rows = OPS["causal_conv"].make_inputs(SMALL["causal_conv"][0], device=device)
    assert state is not None
    with pytest.raises(
        TypeError, match=r"state must be torch\.float32 as x is, got torch\.float16"
    ):
        OPS["causal_conv"].kernel(x, weights, replace(state, data=state.data.half()), rows)


@torch.no_grad()
def test_dequantize_reads_nothing_out_of_range_and_skips_lines(device: str) -> None:
    case = OPS["rvq_dequantize"].cases[1]
    codes, weights, _, _ = OPS["rvq_dequantize"].make_inputs(case, device=device)
    size = weights.tables.shape[1]
    wrong, nearest = codes.clone(), codes.clone()
    wrong[0, 1], nearest[0, 1] = size + 1000, size - 1
    wrong[1, 2], nearest[1, 2] = -1000, 0
    rows = RowBatch.build([0, 1], [1, 1], [3, 3], exec_mask=[True, False], device=device)
    kernel = OPS["rvq_dequantize"].kernel
    assert_bitwise_equal(kernel(wrong, weights), kernel(nearest, weights))
    some = kernel(codes, weights, None, rows)
    assert_bitwise_equal(some[:1], kernel(codes, weights)[:1])
    assert int(some[1].count_nonzero()) == 0
    swapped = replace(weights, semantic=weights.acoustic, acoustic=weights.semantic)
    assert error_ratio(kernel(codes, swapped), kernel(codes, weights)) > 0.1


@torch.no_grad()
def test_quantize_takes_the_lower_of_two_equal_rows_and_skips_lines(device: str) -> None:
    case = OPS["rvq_quantize"].cases[2]
    x, weights, _, _ = OPS["rvq_quantize"].make_inputs(case, device=device)
    kernel = OPS["rvq_quantize"].kernel
    codes = kernel(x, weights)
    tables, half = weights.tables.clone(), weights.half_norms.clone()
    for t in range(3):  # the same row again, in another tile and in the last place
        q, code = t, int(codes[t, t])
        for twin in (120, 129):
            tables[q, twin], half[q, twin] = tables[q, code], half[q, code]
    doubled = replace(weights, tables=tables, half_norms=half)
    with ordered_dots() if device == "cpu" else nullcontext():
        again = kernel(x, doubled)
    assert_bitwise_equal(again.cpu(), OPS["rvq_quantize"].reference(x.cpu(), cpu(doubled)))
    count = x.shape[0]
    rows = RowBatch.build(
        [0, 1, 2], [5, 9, count - 14], [0, 4, 0], exec_mask=[True, False, True], device=device
    )
    x[5:14] = float("nan")
    some = kernel(x, weights, None, rows)
    assert some[5:14].count_nonzero() == 0
    assert_bitwise_equal(some[:5], codes[:5])
    assert_bitwise_equal(some[14:], codes[14:])


@pytest.mark.parametrize("alone", [0, 16])
@torch.no_grad()
def test_a_latent_keeps_its_codes_alone(alone: int, device: str) -> None:
    case = OPS["rvq_quantize"].cases[2]
    x, weights, _, _ = OPS["rvq_quantize"].make_inputs(case, device=device)
    kernel = OPS["rvq_quantize"].kernel
    assert_bitwise_equal(kernel(x[alone : alone + 1], weights), kernel(x, weights)[alone][None])


def test_no_launch_configuration_is_dead() -> None:
    cases: Sequence[Any] = (*OPS["causal_conv"].cases, *OPS["causal_conv"].bench_cases)
    reached = set()
    for c in cases:
        conv_parameters(c.N, c.K, c.C, c.S * c.L // c.stride, "NVIDIA_H200")
        facts = {"T": c.S * c.L // c.stride, "N": c.N, "K": c.K * c.C}
        reached.add(str(configs.choose("causal_conv", **facts)))
    assert reached == {str(entry["use"]) for entry in configs.table("causal_conv")}
    reached = set()
    for c in (*OPS["conv_transpose"].cases, *OPS["conv_transpose"].bench_cases):
        rows = c.S * (c.L + c.K // c.stride - 1)
        reached.add(str(configs.choose("conv_transpose", "transpose_tiles", T=rows, C=c.C)))
    table = configs.table("conv_transpose", kernel="transpose_tiles")
    assert reached == {str(entry["use"]) for entry in table}
