"""sampling: Philox against its published vectors, draws against plain Python and their law."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling import CODEBOOK_STREAM, TEXT_STREAM, SamplingParams, sampling
from microturn.kernels.sampling import reference as reference_module
from microturn.kernels.sampling.cases import CASES, SamplingCase, make_inputs
from microturn.kernels.sampling.philox import philox4x32, words_of
from microturn.kernels.sampling.reference import core, gumbel_noise, top_candidates, uniform
from microturn.kernels.testing import assert_bitwise_equal, assert_close

ONES = 0xFFFFFFFF


def python_philox(counter: list[int], key: list[int], rounds: int = 10) -> list[int]:
    """The generator on unbounded integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & ONES, (a >> 32) ^ c3 ^ k1, a & ONES
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return [c0, c1, c2, c3]


def python_gumbel(seed: int, step: int, stream: int, index: int) -> float:
    key = [seed & ONES, (seed >> 32) & ONES]
    word = python_philox([step & ONES, stream, index, step >> 32], key)[0]
    return -math.log(-math.log(((word >> 9) + 0.5) / 2**23))


def noise(seed: Tensor, step: Tensor, stream: Tensor, index: Tensor) -> Tensor:
    drawn = gumbel_noise(words_of(seed), words_of(step), words_of(stream), words_of(index))
    return torch.from_numpy(drawn)


def params(batch: int, **changes: object) -> SamplingParams:
    """Temperature 1, every candidate, seeds 0.., step 3."""
    base = SamplingParams(
        torch.ones(batch),
        torch.full((batch,), 1 << 20),
        torch.arange(batch),
        torch.full((batch,), 3),
        TEXT_STREAM,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def chi_square(ids: Tensor, probabilities: Tensor) -> float:
    counts = torch.bincount(ids, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(ids)
    assert float(expected[expected > 0].min()) > 20
    assert int(counts[expected == 0].sum()) == 0
    kept = expected > 0
    return float(((counts - expected)[kept] ** 2 / expected[kept]).sum())


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    c0, c1, c2, c3 = (torch.tensor(c) for c in counter)
    assert [int(w) for w in philox4x32((c0, c1, c2, c3), torch.tensor(key))] == words
    assert python_philox(counter, key) == words
    assert python_philox(counter, key, rounds=9) != words


@pytest.mark.parametrize("shape", [(1, 7), (3, 5), (2, 1 << 14)])
def test_philox_broadcasts_and_keeps_nothing_between_calls(shape: tuple[int, int]) -> None:
    batch, count = shape
    rows = torch.randint(0, 2**32, (batch, 1))
    columns = torch.randint(0, 2**32, (count,))
    key = torch.randint(0, 2**32, (2, batch, 1))
    counter = (rows, torch.tensor(ONES), columns, rows.flip(0))
    words = philox4x32(counter, key)
    assert all(w.shape == shape for w in words)
    for b, n in [(0, 0), (batch - 1, count - 1), (batch - 1, count // 2)]:
        want = python_philox(
            [int(rows[b]), ONES, int(columns[n]), int(rows.flip(0)[b])],
            [int(key[0, b]), int(key[1, b])],
        )
        assert [int(w[b, n]) for w in words] == want
    kept = [w.clone() for w in words]
    philox4x32((rows + 1, rows, columns, rows), key)
    for word, before, again in zip(words, kept, philox4x32(counter, key), strict=True):
        assert torch.equal(word, before)
        assert torch.equal(again, before)


def test_uniform_is_exact_and_never_0_or_1() -> None:
    words = torch.cat([torch.randint(0, 2**32, (999,)), torch.tensor([0, 511, 512, ONES])])
    u = torch.from_numpy(uniform(words_of(words)))
    assert u.dtype == torch.float32
    assert torch.equal(u.double(), ((words >> 9).double() + 0.5) / 2**23)
    assert float(u[-4]) == 2.0**-24
    assert float(u[-1]) == 1 - 2.0**-24


def test_noise_reads_all_of_seed_step_stream_and_index() -> None:
    for seed in (0, 1, -1, 2**40 + 5, -(2**63)):
        for step in (0, 7, 2**32 + 7, 2**40):
            index = torch.tensor([0, 1, 200_000])
            got = noise(torch.tensor([seed]), torch.tensor([step]), torch.tensor(9), index)
            want = torch.tensor([python_gumbel(seed, step, 9, int(i)) for i in index])
            assert_close(got, want, 1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_case_draws_what_plain_python_draws(case: SamplingCase) -> None:
    x, p, state, rows = make_inputs(case)
    got = sampling(x, p, state, rows)
    assert got.shape == (case.B,)
    assert got.dtype == torch.int64
    for b in range(case.B):
        logits = x[b].double().tolist()
        order = sorted(range(case.V), key=lambda i: (-logits[i], i))[: case.K]
        seed, step, temperature = int(p.seed[b]), int(p.step[b]), float(p.temperature[b])
        if temperature == 0:
            assert int(got[b]) == order[0]
            continue
        noisy = {i: logits[i] / temperature + python_gumbel(seed, step, p.stream, i) for i in order}
        assert int(got[b]) == max(order, key=lambda i: (noisy[i], -i))


@pytest.mark.parametrize("top_k", [16, 5])
def test_draws_follow_the_softmax_of_the_candidates(top_k: int) -> None:
    """20,000 steps of one session; a true law passes each limit 99,999 times in 100,000."""
    draws, size, temperature = 20_000, 16, 1.3
    logits = 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(4))
    p = params(
        draws,
        temperature=torch.full((draws,), temperature),
        top_k=torch.full((draws,), top_k),
        seed=torch.full((draws,), 1234567890123),
        step=torch.arange(draws),
    )
    ids = sampling(logits.expand(draws, -1).contiguous(), p)
    kept = logits.topk(top_k).indices
    law = torch.full((size,), float("-inf"))
    law[kept] = logits[kept]
    limit = {16: 49.3, 5: 28.5}[top_k]
    assert chi_square(ids, (law / temperature).softmax(0)) < limit
    assert chi_square(ids, law.softmax(0)) > limit, "another temperature must be told apart"
    pairs = torch.bincount(ids[:-1] * size + ids[1:], minlength=size * size).double()
    both = (law / temperature).softmax(0).double()
    expected = torch.outer(both, both).flatten() * (draws - 1)
    likely = expected > 20
    statistic = float(((pairs - expected)[likely] ** 2 / expected[likely]).sum())
    freedom = int(likely.sum())
    assert statistic < freedom + 4.6 * (2 * freedom) ** 0.5, "successive draws depend"


def test_a_draw_depends_on_seed_step_and_stream_and_on_nothing_else() -> None:
    logits = torch.randn(1, 64).expand(200, -1).contiguous()
    p = params(200)
    ids = sampling(logits, p)
    assert torch.equal(sampling(logits, p), ids)
    for change in (
        {"seed": p.seed + 1000},
        {"seed": p.seed + 2**32},
        {"step": p.step + 1},
        {"step": p.step + 2**32},
        {"stream": CODEBOOK_STREAM},
        {"stream": CODEBOOK_STREAM + 1},
    ):
        assert not torch.equal(sampling(logits, dataclasses.replace(p, **change)), ids), change


@pytest.mark.parametrize("size", [37, 256, 5000])
def test_a_row_does_not_depend_on_its_batch(size: int) -> None:
    batch = 13
    logits = torch.randn(batch, size)
    p = params(
        batch,
        temperature=torch.tensor([0.0, 0.7, 1.0, 2.5] * 4)[:batch],
        top_k=torch.tensor([1, 250, 3, size, 25] * 3)[:batch],
        step=torch.arange(batch) * 7,
    )

    def rows(of: Tensor) -> SamplingParams:
        return SamplingParams(p.temperature[of], p.top_k[of], p.seed[of], p.step[of], p.stream)

    together = sampling(logits, p)
    alone = [sampling(logits[b : b + 1], rows(torch.tensor([b]))) for b in range(batch)]
    assert torch.equal(torch.cat(alone), together)
    order = torch.randperm(batch)
    assert torch.equal(sampling(logits[order], rows(order)), together[order])


def test_noise_bits_do_not_depend_on_the_shape_of_the_call() -> None:
    """The depth head draws the noise of a whole frame at once, sampling that of candidates."""
    seed, step = torch.arange(3) + 2**50, torch.arange(3)
    index = torch.arange(77)
    streams = torch.arange(5)
    whole = noise(seed[:, None, None], step[:, None, None], streams[:, None], index)
    for b, q in [(0, 0), (2, 4), (1, 3)]:
        some = torch.randperm(77)[:13]
        got = noise(seed[b, None], step[b, None], streams[q], some)
        assert_bitwise_equal(got, whole[b, q][some])


def test_two_threads_share_nothing() -> None:
    logits = torch.randn(4, 64)

    def draw(offset: int) -> list[list[int]]:
        return [
            sampling(logits, params(4, step=torch.full((4,), offset + i))).tolist()
            for i in range(150)
        ]

    want = [draw(0), draw(1000)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(draw, [0, 1000])) == want


def test_inference_mode_draws_the_same() -> None:
    logits = torch.randn(3, 11)
    with torch.inference_mode():
        ids = sampling(logits, params(3))
    assert torch.equal(sampling(logits, params(3)), ids)
    with torch.no_grad():
        assert torch.equal(sampling(logits, params(3)), ids)


def test_candidates_come_largest_first_with_ties_to_the_lower_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.randint(-3, 4, (6, 100)).float()
    logits[0, :50] = float("-inf")
    logits[1, ::2] = -0.0
    sorted_way = top_candidates(logits.numpy(), 30)
    monkeypatch.setattr(reference_module, "SORT_LIMIT", 0)
    keyed_way = top_candidates(logits.numpy(), 30)
    for b in range(6):
        row = logits[b].tolist()
        want = sorted(range(100), key=lambda i: (-row[i], i))[:30]
        assert sorted_way[1][b].tolist() == want
        assert keyed_way[1][b].tolist() == want
    assert np.array_equal(sorted_way[0], keyed_way[0])
    other = logits.topk(30).indices
    assert any(other[b].tolist() != keyed_way[1][b].tolist() for b in range(6)), "no tie was tested"


def test_top_k_keeps_the_lower_ids_of_a_tie() -> None:
    logits = torch.zeros(400, 8)
    logits[:, 6] = 1.0
    ids = sampling(logits, params(400, top_k=torch.full((400,), 3)))
    assert set(ids.tolist()) == {6, 0, 1}


def test_an_equal_maximum_goes_to_the_lower_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0]])
    assert int(sampling(logits, params(1, temperature=torch.zeros(1)))) == 1
    assert int(core(logits, params(1), torch.zeros(1, 5))) == 1
    # Equal after the noise, in another order than before it.
    assert int(core(logits, params(1), torch.tensor([[2.0, 0.0, 1.0, 0.0, 0.0]]))) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_finite_maximum_gives_0_and_spoils_no_other(temperature: float) -> None:
    logits = torch.randn(5, 32)
    logits[:, 0] = -9.0
    p = params(5, temperature=torch.full((5,), temperature))
    clean = sampling(logits, p)
    logits[1, 7] = float("nan")
    logits[2, 7] = float("inf")
    logits[3] = float("-inf")
    logits[4, 9] = -float("nan")
    got = sampling(logits, p)
    assert got.tolist() == [int(clean[0]), 0, 0, 0, 0]
    assert 0 not in clean.tolist()


def test_minus_infinity_forbids_an_id() -> None:
    logits = torch.full((300, 20), float("-inf"))
    logits[:, [4, 11]] = 0.0
    assert set(sampling(logits, params(300)).tolist()) == {4, 11}


def test_a_tiny_temperature_is_the_greedy_choice() -> None:
    logits = torch.randn(50, 64)
    p = params(50, temperature=torch.full((50,), 1e-38))
    assert torch.equal(sampling(logits, p), logits.argmax(-1))


def test_top_k_outside_the_vocabulary_is_clamped() -> None:
    logits = torch.randn(30, 40)
    few = sampling(logits, params(30, top_k=torch.zeros(30, dtype=torch.int64)))
    assert torch.equal(few, logits.argmax(-1))
    exact = sampling(logits, params(30, top_k=torch.full((30,), 40)))
    assert torch.equal(sampling(logits, params(30, top_k=torch.full((30,), 41))), exact)


def test_rows_that_do_not_run_give_0_and_out_is_used() -> None:
    logits = torch.randn(3, 16)
    logits[:, 0] = -9.0
    rows = RowBatch.build([2, -1, 0], [1] * 3, [0] * 3, exec_mask=[True, True, False])
    out = torch.full((3,), 99)
    assert sampling(logits, params(3), None, rows, out=out) is out
    assert out.tolist() == [int(sampling(logits, params(3))[0]), 0, 0]


def test_bad_arguments_say_what_is_wanted() -> None:
    logits = torch.randn(2, 8)
    with pytest.raises(ValueError, match=r"sampling: seed must be \[2\], got \[3\]"):
        sampling(logits, params(2, seed=torch.arange(3)))
    with pytest.raises(TypeError, match=r"top_k must be torch.int64, got torch.int32"):
        sampling(logits, params(2, top_k=torch.ones(2, dtype=torch.int32)))
    with pytest.raises(TypeError, match=r"logits must be torch.float32"):
        sampling(logits.double(), params(2))
    with pytest.raises(ValueError, match="at least one id"):
        sampling(torch.zeros(2, 0), params(2))
