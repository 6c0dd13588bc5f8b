"""streaming_attention: values against an fp64 loop and the whole-sequence form, bits against cuts
of the stream and company in the batch.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from microturn.kernels.arena import Pages, Ring
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention import (
    AttentionInputs,
    AttentionWeights,
    KVState,
    kv_specs,
    layout,
    reference,
    streaming_attention,
)
from microturn.kernels.streaming_attention.cases import CASES, AttentionCase, make_inputs
from microturn.kernels.streaming_attention.layout import build_parts
from microturn.kernels.streaming_attention.reference import core
from microturn.kernels.streaming_attention.rope import apply_rope
from microturn.kernels.streaming_attention.whole import BLOCK
from microturn.kernels.testing import assert_bitwise_equal, assert_close, error_ratio

MAX_ROWS = 56


@dataclass(frozen=True)
class Setup:
    """One attention layer and how its past is kept."""

    kind: str
    H: int
    Hkv: int
    D: int
    weights: AttentionWeights

    def state(self, num_slots: int = 4) -> KVState:
        """Arenas full of NaN; pages shuffled over the slots."""
        spec, _ = kv_specs(
            "kv",
            kind=self.kind,
            window=self.weights.window,
            max_rows_per_tick=MAX_ROWS,
            num_kv_heads=self.Hkv,
            head_dim=self.D,
            cursor="rows",
            num_sink_tokens=self.weights.num_sink_tokens,
        )
        if self.kind == "ring":
            shape = (num_slots, spec.capacity, *spec.shape)
            return KVState(*(Ring(torch.full(shape, math.nan), spec.pinned) for _ in range(2)))
        pages = spec.capacity // spec.page_size
        table = torch.randperm(num_slots * pages).view(num_slots, pages).int()
        shape = (num_slots * pages, spec.page_size, *spec.shape)
        return KVState(*(Pages(torch.full(shape, math.nan), table, spec.pinned) for _ in range(2)))

    def sequence(self, length: int) -> AttentionInputs:
        bank = self.weights.rel_bank
        return AttentionInputs(
            torch.randn(length, self.H, self.D),
            torch.randn(length, self.Hkv, self.D),
            torch.randn(length, self.Hkv, self.D),
            None if bank is None else torch.randn(length, self.H, bank.shape[0]),
        )


def bank(extent: int, d_rel: int = 16) -> Tensor:
    g = torch.Generator().manual_seed(extent)
    return torch.randn(d_rel, extent, generator=g) / d_rel**0.5


SETUPS = {
    "ring with bias": Setup("ring", 4, 2, 32, AttentionWeights(200, 32**-0.5, bank(200))),
    "pages, short extent, log scaling": Setup(
        "pages", 4, 2, 32, AttentionWeights(300, 1 / 32, bank(130), log_floor=50, log_alpha=0.1)
    ),
    "ring with rope": Setup("ring", 2, 2, 64, AttentionWeights(250, 0.125, rope_theta=10_000.0)),
    "pages of more than a group": Setup(
        "pages", 3, 1, 16, AttentionWeights(1100, 0.25, bank(64), log_floor=100, log_alpha=0.2)
    ),
    "ring with sinks": Setup("ring", 4, 2, 32, AttentionWeights(200, 1 / 32, num_sink_tokens=5)),
    "pages, sinks of two leaves": Setup(
        "pages",
        2,
        1,
        16,
        AttentionWeights(150, 0.25, bank(180), log_floor=50, log_alpha=0.1, num_sink_tokens=140),
    ),
}
every_setup = pytest.mark.parametrize("name", SETUPS)


def part(x: AttentionInputs, start: int, stop: int) -> AttentionInputs:
    r = None if x.r is None else x.r[start:stop]
    return AttentionInputs(x.q[start:stop], x.k[start:stop], x.v[start:stop], r)


def join(parts: list[AttentionInputs]) -> AttentionInputs:
    r = [p.r for p in parts if p.r is not None]
    return AttentionInputs(
        torch.cat([p.q for p in parts]),
        torch.cat([p.k for p in parts]),
        torch.cat([p.v for p in parts]),
        torch.cat(r) if r else None,
    )


def random_cuts(total: int, most: int) -> list[int]:
    cuts: list[int] = []
    while total:
        cuts.append(min(total, random.choice((1, 1, 2, 3, random.randint(1, most)))))
        total -= cuts[-1]
    return cuts


def stream(
    x: AttentionInputs,
    weights: AttentionWeights,
    cuts: list[int],
    state: KVState,
    slot: int = 1,
    at: int = 0,
) -> Tensor:
    outs, start = [], 0
    for count in cuts:
        rows = RowBatch.build([slot], [count], [at + start])
        outs.append(streaming_attention(part(x, start, start + count), weights, state, rows))
        start += count
    assert start == x.q.shape[0]
    return torch.cat(outs)


def even_cuts(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def naive_rope(x: Tensor, position: int, theta: float) -> Tensor:
    """x [heads, D] in fp64, as multiplication of complex numbers."""
    turns = [position * theta ** (-2 * i / x.shape[1]) for i in range(x.shape[1] // 2)]
    angles = torch.tensor(turns, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(torch.view_as_complex(x.reshape(x.shape[0], -1, 2)) * turn).flatten(1)


def naive_row(
    q: Tensor,
    r: Tensor | None,
    position: int,
    keys: list[Tensor],
    values: list[Tensor],
    weights: AttentionWeights,
) -> Tensor:
    """One query position in fp64: q [H, D], keys and values [Hkv, D] of positions 0.. (or None)."""
    num_heads = q.shape[0]
    group = num_heads // keys[position].shape[0]
    tau = 1.0
    if weights.log_floor is not None:
        visible = min(position + 1, weights.window + weights.num_sink_tokens)
        tau += weights.log_alpha * math.log(max(1.0, visible / weights.log_floor))
    lowest = max(0, position - weights.window + 1)
    sinks = range(min(lowest, weights.num_sink_tokens))
    seen = [*sinks, *range(lowest, position + 1)]
    out = torch.zeros(num_heads, q.shape[1], dtype=torch.float64)
    for h in range(num_heads):
        k = torch.stack([keys[j][h // group] for j in seen]).double()
        v = torch.stack([values[j][h // group] for j in seen]).double()
        logit = weights.scale * (k @ q[h].double())
        if r is not None and weights.rel_bank is not None:
            table = weights.rel_bank.double()
            for n, j in enumerate(seen):
                if position - j < min(table.shape[1], weights.window):
                    logit[n] += r[h].double() @ table[:, position - j]
        out[h] = (tau * logit).softmax(0) @ v
    return out


def naive(x: AttentionInputs, weights: AttentionWeights, last: int) -> Tensor:
    """The last rows of a sequence from position 0 on."""
    q, keys = x.q.double(), list(x.k.double())
    if weights.rope_theta is not None:
        q = torch.stack([naive_rope(row, i, weights.rope_theta) for i, row in enumerate(q)])
        keys = [naive_rope(row, i, weights.rope_theta) for i, row in enumerate(keys)]
    length = q.shape[0]
    rows = range(length - last, length)
    return torch.stack(
        [
            naive_row(q[i], None if x.r is None else x.r[i], i, keys, list(x.v), weights)
            for i in rows
        ]
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_case_matches_a_loop(case: AttentionCase) -> None:
    x, weights, state, rows = make_inputs(case)
    got = streaming_attention(x, weights, state, rows)
    assert got.shape == x.q.shape
    q = x.q.double()
    for line in rows.lines:
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        end = line.position + line.stop - line.start
        lowest = max(0, line.position - weights.window + 1)
        for j in (*range(min(lowest, weights.num_sink_tokens)), *range(lowest, end)):
            where = torch.tensor(line.slot), torch.tensor(j)
            keys[j], values[j] = state.k.read(*where), state.v.read(*where)
        for t in {line.start, (line.start + line.stop) // 2, line.stop - 1}:
            position = int(rows.positions[t])
            if weights.rope_theta is not None:
                q[t] = naive_rope(q[t], position, weights.rope_theta)
            r = None if x.r is None else x.r[t]
            want = naive_row(q[t], r, position, keys, values, weights)  # type: ignore[arg-type]
            assert_close(got[t], want, 1e-5, f"row {t}")


@every_setup
def test_any_cut_gives_the_same_bits_and_agrees_with_core(name: str) -> None:
    """Long enough to wrap around every arena, small ones three times."""
    setup = SETUPS[name]
    length = 3 * setup.state().k.capacity + 77 if setup.weights.window < 1000 else 2000
    x = setup.sequence(length)
    most = stream(x, setup.weights, even_cuts(length, MAX_ROWS), setup.state())
    some = stream(x, setup.weights, random_cuts(length, MAX_ROWS), setup.state(), slot=2)
    assert_bitwise_equal(some, most)
    assert_close(most, core(x.q, x.k, x.v, x.r, setup.weights), 1e-5)
    rows = RowBatch.build([0], [length], [0])
    assert_close(most, streaming_attention(x, setup.weights, None, rows), 1e-5)


@every_setup
def test_row_by_row_gives_the_same_bits(name: str) -> None:
    setup = SETUPS[name]
    x = setup.sequence(400)
    most = stream(x, setup.weights, even_cuts(400, MAX_ROWS), setup.state())
    assert_bitwise_equal(stream(x, setup.weights, [1] * 400, setup.state()), most)


@every_setup
def test_lines_out_of_step_give_the_bits_they_give_alone(name: str) -> None:
    setup = SETUPS[name]
    lengths = [300, 410, 190]
    sequences = [setup.sequence(n) for n in lengths]
    alone = [
        stream(x, setup.weights, even_cuts(n, 50), setup.state())
        for x, n in zip(sequences, lengths, strict=True)
    ]
    state, at = setup.state(5), [0, 0, 0]
    while at != lengths:
        counts = [
            min(random.choice((0, 1, 3, random.randint(0, MAX_ROWS))), n - a)
            for n, a in zip(lengths, at, strict=True)
        ]
        parts = [part(x, a, a + c) for x, a, c in zip(sequences, at, counts, strict=True)]
        idle = setup.sequence(2)
        rows = RowBatch.build(
            [4, -1, 0, 2, 1],
            [counts[0], 2, counts[1], 2, counts[2]],
            [at[0], 5, at[1], 9, at[2]],
            exec_mask=[True, True, True, False, True],
        )
        x = join([parts[0], idle, parts[1], idle, parts[2]])
        got = streaming_attention(x, setup.weights, state, rows)
        pieces = got.split([counts[0], 2, counts[1], 2, counts[2]])
        assert not pieces[1].any() and not pieces[3].any()
        for i, piece in enumerate((pieces[0], pieces[2], pieces[4])):
            assert_bitwise_equal(piece, alone[i][at[i] : at[i] + counts[i]], f"line {i}")
            at[i] += counts[i]


@every_setup
def test_lines_that_do_not_run_change_no_state(name: str) -> None:
    setup = SETUPS[name]
    state = setup.state()
    stream(setup.sequence(150), setup.weights, even_cuts(150, 50), state)
    before = [a.data.clone() for a in (state.k, state.v)]
    rows = RowBatch.build([1, -1], [3, 2], [150, 0], exec_mask=[False, True])
    out = streaming_attention(setup.sequence(5), setup.weights, state, rows)
    assert not out.any()
    for arena, was in zip((state.k, state.v), before, strict=True):
        assert torch.equal(arena.data.nan_to_num(7.0), was.nan_to_num(7.0))


@every_setup
def test_the_next_tenant_sees_nothing_of_the_last(name: str) -> None:
    setup = SETUPS[name]
    x = setup.sequence(180)
    cuts = random_cuts(180, MAX_ROWS)
    fresh = setup.state()
    want = stream(x, setup.weights, cuts, fresh)
    used = KVState(*(replace(a, data=torch.randn_like(a.data)) for a in (fresh.k, fresh.v)))
    assert_bitwise_equal(stream(x, setup.weights, cuts, used), want)
    assert bool(torch.isfinite(want).all())


@every_setup
def test_rows_of_a_failed_tick_leave_no_trace(name: str) -> None:
    setup = SETUPS[name]
    x, state = setup.sequence(330), setup.state()
    want = stream(x, setup.weights, even_cuts(330, 50), setup.state())
    stream(part(x, 0, 310), setup.weights, even_cuts(310, 50), state)
    bad = setup.sequence(MAX_ROWS)
    bad = AttentionInputs(bad.q, bad.k * math.nan, bad.v * math.nan, bad.r)
    streaming_attention(bad, setup.weights, state, RowBatch.build([1], [MAX_ROWS], [310]))
    got = stream(part(x, 310, 330), setup.weights, [3, 17], state, at=310)
    assert_bitwise_equal(got, want[310:])


@every_setup
def test_keys_already_in_the_arenas_give_the_bits_of_keys_brought(name: str) -> None:
    setup = SETUPS[name]
    x, state = setup.sequence(190), setup.state()
    stream(part(x, 0, 140), setup.weights, even_cuts(140, 50), state)
    rows = RowBatch.build([1], [50], [140])
    tail = part(x, 140, 190)
    want = streaming_attention(tail, setup.weights, state, rows)
    before = [a.data.clone() for a in (state.k, state.v)]
    got = streaming_attention(replace(tail, k=None, v=None), setup.weights, state, rows)
    assert_bitwise_equal(got, want)
    for arena, was in zip((state.k, state.v), before, strict=True):
        assert torch.equal(arena.data.nan_to_num(7.0), was.nan_to_num(7.0))


def test_a_query_with_nan_does_not_touch_its_tile() -> None:
    setup = SETUPS["ring with bias"]
    x = setup.sequence(40)
    want = stream(x, setup.weights, [37, 3], setup.state())
    x.q[38] = math.nan
    got = stream(x, setup.weights, [37, 3], setup.state())
    assert got[38].isnan().all()
    kept = [i for i in range(40) if i != 38]
    assert_bitwise_equal(got[kept], want[kept])


def test_the_size_of_a_part_changes_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = SETUPS["pages of more than a group"]
    x = setup.sequence(1300)
    want = stream(x, setup.weights, even_cuts(1300, 50), setup.state())
    monkeypatch.setattr(layout, "PART_LEAVES", 1000)
    assert_bitwise_equal(stream(x, setup.weights, even_cuts(1300, 50), setup.state()), want)


@pytest.mark.parametrize("pairs", [1, 30, 10_000])
def test_how_many_tiles_share_what_is_gathered_changes_no_bits(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = SETUPS["pages, short extent, log scaling"]
    x = setup.sequence(500)
    want = stream(x, setup.weights, even_cuts(500, 50), setup.state())
    monkeypatch.setattr(layout, "PART_PAIRS", pairs)
    assert_bitwise_equal(stream(x, setup.weights, even_cuts(500, 50), setup.state()), want)


@pytest.mark.parametrize("extent", [1, 44, 171, 172, 173, 299, 300, 301, 428])
def test_a_bank_may_end_anywhere_before_or_after_the_window(extent: int) -> None:
    """The zeros between bank and window are fewer than a leaf, one leaf, more, or none."""
    setup = Setup("ring", 2, 1, 16, AttentionWeights(300, 0.25, bank(extent)))
    x = setup.sequence(470)
    got = stream(x, setup.weights, random_cuts(470, MAX_ROWS), setup.state())
    assert_close(got, core(x.q, x.k, x.v, x.r, setup.weights), 1e-5)


def test_another_order_of_leaves_does_change_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the bitwise comparisons above see the order of sums."""
    setup = SETUPS["pages of more than a group"]
    x = setup.sequence(1300)
    want = stream(x, setup.weights, even_cuts(1300, 50), setup.state())
    monkeypatch.setattr(layout, "GROUP_LEAVES", 4)
    got = stream(x, setup.weights, even_cuts(1300, 50), setup.state())
    assert not torch.equal(got, want)
    assert_close(got, want, 1e-6)


@every_setup
def test_dropping_any_term_fails_the_comparison(name: str) -> None:
    setup = SETUPS[name]
    w = setup.weights
    length = w.window + w.num_sink_tokens + 60
    x = setup.sequence(length)
    got = stream(x, w, even_cuts(length, 50), setup.state())[-2:]
    assert_close(got, naive(x, w, last=2), 1e-5)
    wrong = {
        "window one longer": replace(w, window=w.window + 1),
        "window one shorter": replace(w, window=w.window - 1),
        "another scale": replace(w, scale=w.scale * 1.01),
    }
    if w.rel_bank is not None:
        wrong["no bias"] = replace(w, rel_bank=None)
        wrong["bias shifted"] = replace(w, rel_bank=w.rel_bank.roll(1, 1))
        wrong["bias clamped at its extent"] = replace(
            w, rel_bank=torch.cat((w.rel_bank, w.rel_bank[:, -1:].expand(-1, 2000)), 1)
        )
        if w.rel_bank.shape[1] >= w.window:
            del wrong["bias clamped at its extent"]
    if w.log_floor is not None:
        wrong["no log scaling"] = replace(w, log_floor=None)
    if w.num_sink_tokens:
        wrong["no sinks"] = replace(w, num_sink_tokens=0)
        wrong["one sink more"] = replace(w, num_sink_tokens=w.num_sink_tokens + 1)
        wrong["one sink less"] = replace(w, num_sink_tokens=w.num_sink_tokens - 1)
    if w.rope_theta is not None:
        wrong["no rope"] = replace(w, rope_theta=None)
    for what, weights in wrong.items():
        assert error_ratio(got, naive(x, weights, last=2)) > 1e-4, what


def test_log_scaling_stops_growing_with_the_window() -> None:
    weights = AttentionWeights(300, 1.0, log_floor=50, log_alpha=0.1)
    tau = reference.log_scale(torch.tensor([0, 49, 99, 299, 128_001]), weights)
    assert tau is not None
    want = [1.0, 1.0, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(6), 1 + 0.1 * math.log(6)]
    assert tau.tolist() == pytest.approx(want, abs=1e-7)


def test_rope_turns_a_row_alone_as_in_company_and_late_as_early() -> None:
    x, positions = torch.randn(33, 3, 32), torch.arange(144_000, 144_033)
    together = apply_rope(x, positions, 10_000.0)
    alone = torch.cat([apply_rope(x[t : t + 1], positions[t : t + 1], 10_000.0) for t in range(33)])
    assert_bitwise_equal(together, alone)
    want = torch.stack([naive_rope(x[t].double(), 144_000 + t, 10_000.0) for t in range(33)])
    assert_close(together, want, 1e-6)


def test_without_state_every_line_starts_from_nothing() -> None:
    setup = SETUPS["pages, short extent, log scaling"]
    x = setup.sequence(60)
    rows = RowBatch.build([0, 1, 2, -1], [20, 15, 20, 5], [0, 0, 0, 0])
    got = streaming_attention(x, setup.weights, None, rows)
    for line in rows.lines:
        mine = part(x, line.start, line.stop)
        alone = stream(mine, setup.weights, [7, line.stop - line.start - 7], setup.state())
        assert_close(got[line.start : line.stop], alone, 1e-5)
    assert not got[55:].any()


def test_gradients_are_right_and_stay_inside_a_line() -> None:
    weights = AttentionWeights(4, 0.3, None, log_floor=2, log_alpha=0.3, rope_theta=100.0)
    shapes = [(2, 5, 2, 4), (2, 5, 1, 4), (2, 5, 1, 4), (2, 5, 2, 3), (3, 3)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def run(q: Tensor, k: Tensor, v: Tensor, r: Tensor, table: Tensor) -> Tensor:
        return core(q, k, v, r, replace(weights, rel_bank=table))

    assert torch.autograd.gradcheck(run, inputs)

    setup = SETUPS["ring with bias"]
    x = setup.sequence(12)
    leaves = [t.requires_grad_() for t in (x.q, x.k, x.v, x.r) if t is not None]
    rows = RowBatch.build([0, 1], [5, 7], [0, 0])
    streaming_attention(x, setup.weights, None, rows)[5:].square().sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert not leaf.grad[:5].any() and bool(leaf.grad[5:].any())


def quadratic(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, weights: AttentionWeights, table: Tensor
) -> Tensor:
    """One sequence, every logit at once, by plain autograd."""
    length, num_heads, _ = q.shape
    k, v = (x.repeat_interleave(num_heads // x.shape[1], 1) for x in (k, v))
    position = torch.arange(length)
    distance = position[:, None] - position
    in_window = distance < weights.window
    biased = in_window & (distance >= 0) & (distance < table.shape[1])
    bias = torch.einsum("ihr,rij->hij", r, table[:, distance.clamp(0, table.shape[1] - 1)])
    logits = weights.scale * torch.einsum("ihd,jhd->hij", q, k) + bias * biased
    seen = (distance >= 0) & (in_window | (position < weights.num_sink_tokens))
    shares = logits.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("hij,jhd->ihd", shares, v)


@pytest.mark.parametrize(("window", "extent", "sinks"), [(40, 25, 0), (130, 90, 0), (30, 50, 70)])
def test_gradients_of_blocks_are_those_of_all_logits_at_once(
    window: int, extent: int, sinks: int
) -> None:
    length = 2 * BLOCK + 9
    weights = AttentionWeights(window, 0.3, num_sink_tokens=sinks)
    shapes = [(length, 4, 8), (length, 2, 8), (length, 2, 8), (length, 4, 3), (3, extent)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    *x, table = inputs
    got = core(*x, replace(weights, rel_bank=table))
    want = quadratic(*x, weights, table)
    assert_close(got, want, 1e-12)
    slope = torch.randn_like(got)
    wanted = torch.autograd.grad(want, inputs, slope)
    for mine, theirs in zip(torch.autograd.grad(got, inputs, slope), wanted, strict=True):
        assert_close(mine, theirs, 1e-12)
    narrower = core(*x, replace(weights, rel_bank=table, window=window - 1))
    assert float((narrower - want).abs().max()) > 1e-4


def test_half_precision_arenas_round_only_what_is_kept() -> None:
    setup = SETUPS["ring with bias"]
    x = setup.sequence(150)
    x = AttentionInputs(x.q, x.k.bfloat16().float(), x.v.bfloat16().float(), x.r)
    full = setup.state()
    half = KVState(Ring(full.k.data.bfloat16()), Ring(full.v.data.bfloat16()))
    cuts = even_cuts(150, 50)
    want = stream(x, setup.weights, cuts, full)
    assert_bitwise_equal(stream(x, setup.weights, cuts, half), want)


def test_the_layout_of_the_worked_example() -> None:
    (only,) = build_parts(RowBatch.build([3], [5], [700]), 512, 0, 1, 2)
    assert only.leaf_index.tolist() == [1, 2, 3, 4, 5] * 2
    assert (only.num_groups, only.group_size) == (1, 5)
    assert only.cells.tolist() == [*range(10)]
    assert only.positions.flatten().tolist() == [700, 700, 701, 701, 702, 702, 703, 703] + [704] * 8
    assert only.queries.tolist() == [*range(8), 8, 9, 9, 9, 9, 9, 9, 9]


def test_the_layout_of_the_worked_example_with_sinks() -> None:
    (only,) = build_parts(RowBatch.build([3], [5], [9000]), 512, 4, 1, 2)
    assert only.leaf_index.tolist() == [0, 66, 67, 68, 69, 70] * 2
    assert (only.num_groups, only.group_size) == (2, 8)
    assert only.cells.tolist() == [0, 10, 11, 12, 13, 14, 16, 26, 27, 28, 29, 30]
    assert only.leaves.index.tolist() == [0, 66, 67, 68, 69, 70]
    assert only.runs == ((0, 0, 6), (6, 0, 6))
    assert only.leaves.rows[0, 0].tolist() == [0, 1, 2] + [3] * 125


def test_keys_between_sinks_and_window_are_not_read() -> None:
    """Nor are those that a sink's leaf holds beside it, once they are behind the window."""
    setup = SETUPS["ring with sinks"]
    x, state = setup.sequence(360), setup.state()
    want = stream(x, setup.weights, even_cuts(360, 50), setup.state())
    stream(part(x, 0, 340), setup.weights, even_cuts(340, 50), state)
    hidden = torch.arange(5, 340 - 200 + 1)
    for arena in (state.k, state.v):
        arena.write(torch.ones_like(hidden), hidden, torch.full((len(hidden), 2, 32), math.nan))
    got = stream(part(x, 340, 360), setup.weights, [3, 17], state, at=340)
    assert_bitwise_equal(got, want[340:])


def test_tiles_of_a_line_share_its_leaves_across_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = RowBatch.build([3], [5], [700])
    (only,) = build_parts(rows, 512, 0, 1, 2)
    assert only.leaves.index.tolist() == [1, 2, 3, 4, 5] and only.leaves.slot.tolist() == [3] * 5
    assert only.runs == ((0, 0, 5), (5, 0, 5))
    first_key, last_key = 700 - 511 - 128, 704 - 5 * 128
    keys = only.leaves.rows[:, 0]
    assert keys[0].tolist() == [max(key, first_key) for key in range(128)]
    assert keys[-1].tolist() == [min(key, last_key) for key in range(128)]
    monkeypatch.setattr(layout, "PART_PAIRS", 9)
    one, two = build_parts(rows, 512, 0, 1, 2)
    assert one.leaves is two.leaves and one.runs == two.runs == ((0, 0, 5),)


def test_kv_specs_hold_the_window_and_a_tick() -> None:
    k, v = kv_specs(
        "trunk.3.kv",
        kind="pages",
        window=500,
        max_rows_per_tick=64,
        num_kv_heads=2,
        head_dim=16,
        cursor="rows",
    )
    assert (k.name, v.name) == ("trunk.3.kv.k", "trunk.3.kv.v")
    assert (k.kind, k.shape, k.capacity, k.page_size) == ("pages", (2, 16), 640, 128)
    k, _ = kv_specs(
        "trunk.3.kv",
        kind="ring",
        window=500,
        max_rows_per_tick=64,
        num_kv_heads=2,
        head_dim=16,
        cursor="rows",
        num_sink_tokens=130,
    )
    assert (k.capacity, k.pinned) == (640 + 256, 256)
    with pytest.raises(ValueError, match="'twice'"):
        kv_specs(
            "x",
            kind="twice",
            window=1,
            max_rows_per_tick=1,
            num_kv_heads=1,
            head_dim=1,
            cursor="rows",
        )


def test_bad_input_says_what_is_wanted() -> None:
    setup = SETUPS["ring with bias"]
    x, w, state = setup.sequence(3), setup.weights, setup.state()
    rows = RowBatch.build([0], [3], [0])
    with pytest.raises(ValueError, match="needs both r and rel_bank; got rel_bank, no r"):
        streaming_attention(replace(x, r=None), w, state, rows)
    with pytest.raises(ValueError, match=r"v must be \[3, 2, 32\], got \[3, 4, 32\]"):
        streaming_attention(replace(x, v=x.q), w, state, rows)
    with pytest.raises(ValueError, match="4 query heads do not share 3 kv heads"):
        odd = torch.randn(3, 3, 32)
        streaming_attention(replace(x, k=odd, v=odd), w, state, rows)
    with pytest.raises(ValueError, match="bring both k and v, or neither; got k, no v"):
        streaming_attention(replace(x, v=None), w, state, rows)
    with pytest.raises(ValueError, match="but there is no state"):
        streaming_attention(replace(x, k=None, v=None), w, None, rows)
    with pytest.raises(ValueError, match="rows describes 2 rows, the input has 3"):
        streaming_attention(x, w, state, RowBatch.build([0], [2], [0]))
    with pytest.raises(ValueError, match="keeps 256 positions, room for 57 beside a window of 200"):
        long = setup.sequence(58)
        streaming_attention(long, w, state, RowBatch.build([0], [58], [0]))
    with pytest.raises(ValueError, match="whole leaves of 128 keys, got 200"):
        short = KVState(Ring(torch.zeros(1, 200, 2, 32)), state.v)
        streaming_attention(x, w, short, rows)
    with pytest.raises(ValueError, match="num_sink_tokens is 0 or more, got -1"):
        streaming_attention(x, replace(w, num_sink_tokens=-1), state, rows)
    with pytest.raises(ValueError, match="must pin whole leaves of 128 keys for 4 sinks, got 0"):
        streaming_attention(x, replace(w, num_sink_tokens=4), state, rows)
    with pytest.raises(ValueError, match="keeps 128 positions, room for 29 beside a window of 100"):
        pinned = KVState(replace(state.k, pinned=128), replace(state.v, pinned=128))
        other = replace(w, num_sink_tokens=4, window=100)
        streaming_attention(setup.sequence(30), other, pinned, RowBatch.build([0], [30], [0]))
    with pytest.raises(ValueError, match="take num_sink_tokens 0 or no rope_theta, got 4 and 10"):
        streaming_attention(x, replace(w, num_sink_tokens=4, rope_theta=10.0), state, rows)


def test_out_is_used() -> None:
    x, weights, state, rows = make_inputs(CASES[2])
    out = torch.empty_like(x.q)
    assert streaming_attention(x, weights, state, rows, out=out) is out
    assert_bitwise_equal(out, streaming_attention(x, weights, state, rows))
