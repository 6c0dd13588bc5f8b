"""The kernels of streaming_attention: bits that depend on nothing but the row, poisoned memory,
planted bugs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from microturn.kernels.arena import Pages, Ring
from microturn.kernels.launch import recording
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention import (
    AttentionInputs,
    AttentionWeights,
    KVState,
    kv_specs,
)
from microturn.kernels.streaming_attention.cases import BENCH_CASES, CASES, make_inputs
from microturn.kernels.streaming_attention.launch import sizes_of
from microturn.kernels.streaming_attention.reference import streaming_attention_reference
from microturn.kernels.testing import (
    assert_bitwise_equal,
    assert_close,
    error_ratio,
    ordered_dots,
    to_device,
)
from microturn.kernels.tree import map_tensors

WINDOW, EXTENT = 1300, 200
WEIGHTS = AttentionWeights(WINDOW, 0.25, None, log_floor=300, log_alpha=0.2)


def kernel(x: AttentionInputs, weights: AttentionWeights, state: KVState, rows: RowBatch) -> Tensor:
    from microturn.kernels.streaming_attention.launch import streaming_attention_kernel

    return streaming_attention_kernel(x, weights, state, rows)


def exact(device: str) -> object:
    """Products summed as a matrix unit sums them, where the interpreter stands in for one."""
    return nullcontext() if device == "cuda" else ordered_dots()


@contextmanager
def config(monkeypatch: pytest.MonkeyPatch, programs: int, **use: object) -> Iterator[None]:
    """Launch parameters other than the released ones, `programs` at once for every kv head."""
    from microturn.kernels.streaming_attention import launch

    base = {"BLOCK_Q": 16, "STAGES": 2, "PREFIX": True, "CTAS": 1, "num_warps": 8}
    with monkeypatch.context() as patch:
        patch.setattr(launch, "choose", lambda *a, **k: dict(base | use))
        patch.setattr(launch, "num_sms", lambda device: programs)
        yield


def layer(
    device: str,
    kind: str = "ring",
    sinks: int = 0,
    window: int = WINDOW,
    kept: torch.dtype = torch.float32,
) -> tuple[AttentionWeights, KVState]:
    """4 query heads on 2 kv heads of 16, 3 slots of arenas full of random past, for windows of up
    to WINDOW.
    """
    g = torch.Generator().manual_seed(1)
    bank = (torch.randn(EXTENT, 16, generator=g) / 4).T
    slots = 3
    spec, _ = kv_specs(
        "kv",
        kind="ring",
        window=WINDOW,
        max_rows_per_tick=40,
        num_kv_heads=2,
        head_dim=16,
        cursor="rows",
        num_sink_tokens=sinks,
    )
    leaves = spec.capacity // 128
    table = torch.randperm(slots * leaves, generator=g).view(slots, leaves).int()
    arenas: list[Ring | Pages] = []
    for _ in range(2):
        data = torch.randn(slots, spec.capacity, 2, 16, generator=g).to(kept)
        if kind == "ring":
            arenas.append(Ring(data, spec.pinned))
        else:
            arenas.append(Pages(data.view(-1, 128, 2, 16), table, spec.pinned))
    weights = replace(WEIGHTS, window=window, rel_bank=bank, num_sink_tokens=sinks)
    return to_device((weights, KVState(*arenas)), device)  # type: ignore[no-any-return]


def draw(length: int, device: str, seed: int = 2) -> AttentionInputs:
    g = torch.Generator().manual_seed(seed)
    shapes = ((length, 4, 16), (length, 2, 16), (length, 2, 16), (length, 4, 16))
    return AttentionInputs(*(torch.randn(s, generator=g).to(device) for s in shapes))


def part(x: AttentionInputs, start: int, stop: int) -> AttentionInputs:
    return map_tensors(lambda t: t[start:stop], x)


def join(*parts: AttentionInputs) -> AttentionInputs:
    names = ("q", "k", "v", "r")
    return AttentionInputs(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


def copy(state: KVState) -> KVState:
    return map_tensors(torch.clone, state)


ARENAS = {
    "ring": ("ring", 0),
    "pages with sinks": ("pages", 130),
    "ring in 8 bits": ("ring", 0, WINDOW, torch.float8_e4m3fn),
}
AT, ROWS = 4000, 5


@cache
def alone(arena: str, device: str) -> Tensor:
    """Rows of slot 1 from AT on, one by one, ranges that begin and end inside groups."""
    weights, state = layer(device, *ARENAS[arena])
    x = draw(ROWS, device)
    with pytest.MonkeyPatch.context() as patch, config(patch, 14):
        rows = [RowBatch.build([1], [1], [AT + i], device=device) for i in range(ROWS)]
        return torch.cat(
            [kernel(part(x, i, i + 1), weights, state, one) for i, one in enumerate(rows)]
        )


@pytest.mark.parametrize(
    ("arena", "programs", "use"),
    [
        ("ring", 200, {}),  # a leaf a program
        ("ring", 2, {}),  # one program a kv head
        ("ring", 10, {"PREFIX": False}),
        ("ring", 4, {"BLOCK_Q": 64}),
        ("ring in 8 bits", 4, {"BLOCK_Q": 32}),
        ("pages with sinks", 2, {}),
        ("pages with sinks", 4, {}),  # a range that ends after two of three groups
        ("pages with sinks", 8, {"BLOCK_Q": 32, "PREFIX": False}),
    ],
)
def test_tiles_and_ranges_change_no_bits(
    arena: str,
    programs: int,
    use: dict[str, object],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does company: the rows alone, one by one, and beside another line and an idle one."""
    weights, state = layer(device, *ARENAS[arena])
    x = join(draw(3, device, 5), draw(ROWS, device), draw(2, device, 6))
    lines, mask = ([2, 1, 0], [3, ROWS, 2], [500, AT, 9]), [True, True, False]
    rows = RowBatch.build(*lines, exec_mask=mask, device=device)
    beside = copy(state)
    with exact(device), config(monkeypatch, programs, **use):  # type: ignore[attr-defined]
        got = kernel(x, weights, beside, rows)
        want = alone(arena, device)
    assert_bitwise_equal(got[3 : 3 + ROWS], want)
    assert not got[3 + ROWS :].any()
    reference = streaming_attention_reference(
        *to_device((x, weights, state), "cpu"), RowBatch.build(*lines, exec_mask=mask)
    )
    assert_close(got.cpu(), reference, 1e-5)


@pytest.mark.parametrize(
    ("at", "cuts"), [(0, (1, 2, 17)), (100, (1, 2, 20, 3, 14))], ids=["from the first row", "later"]
)
def test_any_cut_of_a_stream_gives_the_same_bits(
    at: int, cuts: tuple[int, ...], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the end of a leaf, in arenas that hold a former tenant's NaN; the sinks are seen inside
    the window, then behind it.
    """
    weights, state = layer(device, sinks=5, window=97)
    past, slot = torch.arange(at, device=device), torch.ones(at, dtype=torch.long, device=device)
    for arena in (state.k, state.v):
        before = arena.read(slot, past)
        arena.data.fill_(float("nan"))
        arena.write(slot, past, before)
    x = draw(sum(cuts), device)

    def run(cuts: tuple[int, ...], programs: int) -> Tensor:
        mine, outs, start = copy(state), [], 0
        with config(monkeypatch, programs), exact(device):  # type: ignore[attr-defined]
            for count in cuts:
                rows = RowBatch.build([1], [count], [at + start], device=device)
                outs.append(kernel(part(x, start, start + count), weights, mine, rows))
                start += count
        return torch.cat(outs)

    most = run((sum(cuts),), 4)
    assert bool(torch.isfinite(most).all())
    assert_bitwise_equal(run(cuts, 2), most)


def test_another_order_of_leaves_does_change_bits(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the bitwise comparisons above see the order of sums."""
    weights, state = layer(device)
    x, rows = draw(1, device), RowBatch.build([1], [1], [2047], device=device)
    with config(monkeypatch, 2), exact(device):  # type: ignore[attr-defined]
        want = kernel(x, weights, copy(state), rows)
    moved = [
        Ring(a.data.roll(128 * 3, 1)) for a in (state.k, state.v)
    ]  # leaves elsewhere in groups
    rows = RowBatch.build([1], [1], [2047 + 384], device=device)
    with config(monkeypatch, 2), exact(device):  # type: ignore[attr-defined]
        got = kernel(x, weights, KVState(*moved), rows)
    assert not torch.equal(got, want)
    assert_close(got, want, 1e-5)


def test_a_dropped_term_fails_the_comparison(device: str) -> None:
    weights, state = layer(device, sinks=4, window=250)
    weights = replace(weights, log_floor=100)
    x, rows = draw(1, device), RowBatch.build([1], [1], [2900], device=device)
    want = streaming_attention_reference(
        *to_device((x, weights, copy(state)), "cpu"), RowBatch.build([1], [1], [2900])
    )
    assert_close(kernel(x, weights, copy(state), rows).cpu(), want, 1e-5)
    assert weights.rel_bank is not None
    wrong = {
        "no bias": replace(weights, rel_bank=weights.rel_bank * 0),
        "bias one off": replace(weights, rel_bank=weights.rel_bank.roll(1, 1)),
        "no tau": replace(weights, log_floor=None),
        "window one longer": replace(weights, window=251),
        "window one shorter": replace(weights, window=249),
        "one sink less": replace(weights, num_sink_tokens=3),
    }
    for what, other in wrong.items():
        got = kernel(x, other, copy(state), rows).cpu()
        assert error_ratio(got, want) > 1e-4, what


def test_a_planted_bug_in_the_fold_is_caught(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging partials without their maxima."""
    if device == "cuda":
        pytest.skip("a compiled kernel is not patched")
    from microturn.kernels.streaming_attention import kernel as module

    weights, state = layer(device, window=300)
    x, rows = draw(1, device), RowBatch.build([1], [1], [2900])
    want = streaming_attention_reference(x, weights, copy(state), rows)
    plain = module.fold

    def wrong(top: object, total: object, acc: object, *other: object) -> object:
        return plain(other[0], total, acc, *other)

    monkeypatch.setattr(module, "fold", wrong)
    assert error_ratio(kernel(x, weights, copy(state), rows), want) > 1e-4


def test_what_no_query_sees_is_not_read(device: str) -> None:
    """Nor the keys between sinks and window. A query of NaN stays alone, too."""
    weights, state = layer(device, sinks=130, window=300)
    x, rows = draw(3, device), RowBatch.build([1], [3], [2000], device=device)
    want = kernel(x, weights, copy(state), rows)
    poisoned = copy(state)
    later = range(2003, 2000 - 300 + 1 + state.k.capacity - state.k.pinned)
    hidden = torch.tensor([*range(130, state.k.pinned), *later], device=device)
    slot = torch.ones_like(hidden)
    for arena in (poisoned.k, poisoned.v):
        arena.data[0] = arena.data[2] = float("nan")
        arena.write(slot, hidden, arena.read(slot, hidden) * float("nan"))
    assert_bitwise_equal(kernel(x, weights, poisoned, rows), want)
    x.q[1] = float("nan")
    got = kernel(x, weights, copy(state), rows)
    assert bool(got[1].isnan().all())
    assert_bitwise_equal(got[::2], want[::2])


def test_keys_already_kept_are_attended_in_one_launch(device: str) -> None:
    weights, state = layer(device, window=300)
    x = draw(3, device)
    rows = RowBatch.build([1], [3], [2000], device=device)
    with recording() as launches:
        want = kernel(x, weights, state, rows)
        assert [launch.name for launch in launches] == ["plan_step", "append_rows", "attend"]
        got = kernel(replace(x, k=None, v=None), weights, state, rows)
    assert [launch.name for launch in launches[3:]] == ["attend"]
    assert_bitwise_equal(got, want)


def test_late_positions_turn_as_exactly_as_early_ones(device: str) -> None:
    """Rope at 3 hours of a stream."""
    weights, state = layer(device)
    weights = AttentionWeights(100, 0.25, rope_theta=10_000.0)
    x, start = replace(draw(3, device), r=None), 131_071
    mine, theirs = copy(state), to_device(state, "cpu")
    got = kernel(x, weights, mine, RowBatch.build([1], [3], [start], device=device))
    rows = RowBatch.build([1], [3], [start])
    want = streaming_attention_reference(to_device(x, "cpu"), weights, theirs, rows)
    assert_close(got.cpu(), want, 1e-5)
    assert_close(mine.k.data.cpu(), theirs.k.data, 1e-6)


def test_what_8_bits_keep_is_rounded_as_torch_rounds(device: str) -> None:
    """To even, small numbers, the largest, NaN."""
    from microturn.kernels.draw import FP8

    weights = AttentionWeights(100, 0.25)
    data = torch.zeros(1, 256, 2, 16, device=device).to(FP8)
    state = KVState(Ring(data), Ring(data.clone()))
    x = replace(draw(8, device), r=None)
    assert x.k is not None and x.v is not None
    x.k.mul_(10.0 ** torch.arange(-4, 4, device=device)[:, None, None])
    x.v[3, 0, :3] = torch.tensor([float("nan"), 1.0625, 1.1875], device=device)
    kernel(x, weights, state, RowBatch.build([0], [8], [0], device=device))
    for arena, values in ((state.k, x.k), (state.v, x.v)):
        want = values.clamp(-448, 448).to(FP8).float()
        assert_bitwise_equal(arena.data[0, :8].float().nan_to_num(9), want.nan_to_num(9))


def test_the_assembly_takes_each_byte_with_its_sign() -> None:
    """The selectors of `prmt` as they stand in the source; the interpreter runs no assembly."""
    source = Path(find_spec("microturn.kernels.device.fp8").origin).read_text()  # type: ignore[union-attr, arg-type]
    [(high, low)] = re.findall(r'"0x(\w{4})" if HIGH else "0x(\w{4})"', source)

    def permuted(word: int, selector: str) -> int:
        both = [*word.to_bytes(4, "little"), 0, 0, 0, 0]
        picked = ((both[n & 7], n & 8) for n in (int(c, 16) for c in reversed(selector)))
        signs = bytes(255 * (byte >> 7) if sign else byte for byte, sign in picked)
        return int.from_bytes(signs, "little")

    for word in (0x00000000, 0x7F81FE01, 0x80017F80, 0x12345678, 0xFEDCBA98):
        first, second, third, fourth = struct.unpack("<4b", struct.pack("<I", word))
        for selector, pair in ((low, (first, second)), (high, (third, fourth))):
            assert permuted(word, selector) == int.from_bytes(struct.pack("<2h", *pair), "little")


def test_8_bit_heads_that_are_not_whole_loads_are_refused(device: str) -> None:
    from microturn.kernels.draw import FP8

    data = torch.zeros(1, 256, 2, 24, device=device).to(FP8)
    x = AttentionInputs(*(torch.zeros(1, 2, 24, device=device) for _ in range(3)), None)
    rows = RowBatch.build([0], [1], [0], device=device)
    with pytest.raises(ValueError, match="heads of 24; pad them to a multiple of 16"):
        kernel(x, AttentionWeights(100, 0.25), KVState(Ring(data), Ring(data)), rows)


def test_the_worked_sizes() -> None:
    """64 sessions of 8192 keys: 8 kv heads share 132 programs, 16 ranges a head."""
    sizes = sizes_of(64, 1, 8, 4, 8192, 16, 132)
    assert (sizes.tile, sizes.tiles, sizes.segments, sizes.ranges) == (4, 1, 64, 16)
    assert sizes.slots == 64 * 10 + 7 * 16
    assert sizes_of(1, 1, 8, 4, 100, 16, 132).ranges == 2


def test_every_case_counts_its_bytes() -> None:
    one = next(c for c in BENCH_CASES if c.id.startswith("B=1,T=1,H=32,Hkv=8,D=128,window=1024"))
    kept, head, bank = 2 * 1024 * 8 * 128, 32 * (128 + 128 + 16), 1024 * 16
    assert one.bytes(2) == 2 * (kept + head + bank)
    assert one.bytes(2, 1) == kept + 2 * (head + bank)
    assert len({c.id for c in BENCH_CASES}) == len(BENCH_CASES)
    assert len({c.id for c in CASES}) == len(CASES)
    x, _, state, rows = make_inputs(one, device="meta", dtype=torch.bfloat16)
    assert x.k is None and state.k.data.dtype == torch.bfloat16 and rows.max_line_rows == 1
