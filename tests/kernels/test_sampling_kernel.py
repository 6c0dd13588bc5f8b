"""The Triton kernel of sampling: the edges of a draw, and rows in any company.

Ids are compared with the reference's, exactly. On a GPU the two logarithms of the noise may round
otherwise than a CPU's, so two candidates within some 1e-6 of one another could change places there;
no input below holds such a pair on the CPU's side.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling import SamplingParams
from microturn.kernels.sampling.launch import sampling_kernel
from microturn.kernels.sampling.reference import sampling_reference
from microturn.kernels.testing import to_device

SIZES = (37, 2048, 9001)
"""One warp; one program; three programs and a last one that draws."""


def params(batch: int, **changes: object) -> SamplingParams:
    base = SamplingParams(
        torch.tensor([0.0, 0.7, 1.0, 2.5] * batch)[:batch],
        torch.tensor([25, 250, 3, 1 << 40, 0] * batch)[:batch],
        torch.arange(batch) * 2**40 - 5,
        torch.arange(batch) * 2**31,
        3,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def drawn(logits: Tensor, p: SamplingParams, device: str, rows: RowBatch | None = None) -> Tensor:
    x, p, rows = to_device((logits, p, rows), device)
    return sampling_kernel(x, p, None, rows).cpu()


@pytest.mark.parametrize("size", SIZES)
def test_mixed_rows_draw_what_the_reference_draws(size: int, device: str) -> None:
    logits = 2 * torch.randn(5, size, generator=torch.Generator().manual_seed(size))
    want = sampling_reference(logits, params(5))
    assert torch.equal(drawn(logits, params(5), device), want)
    for row in (1, 4):
        p = params(5)
        at = slice(row, row + 1)
        one = SamplingParams(p.temperature[at], p.top_k[at], p.seed[at], p.step[at], p.stream)
        assert torch.equal(drawn(logits[row : row + 1], one, device), want[row : row + 1])


@pytest.mark.parametrize("size", SIZES)
def test_equal_logits_keep_their_lower_ids(size: int, device: str) -> None:
    """A few values, so that the threshold cuts through hundreds of equals; zeros of both signs."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 3, (6, size), generator=generator).float()
    logits[logits == 0] = -0.0
    logits[:, ::5] = logits[:, ::5] + 0.0
    p = params(6, top_k=torch.tensor([1, 5, 20, 36, 2, 30]), temperature=torch.full((6,), 30.0))
    want = sampling_reference(logits, p)
    assert torch.equal(drawn(logits, p, device), want)
    other = drawn(logits.flip(1), p, device)
    assert not torch.equal(size - 1 - other, want), "the higher ids would have done as well"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_give_0(size: int, temperature: float, device: str) -> None:
    logits = torch.randn(6, size, generator=torch.Generator().manual_seed(2))
    logits[:, 0] = -9.0
    p = params(6, temperature=torch.full((6,), temperature))
    logits[1, 7] = float("nan")
    logits[2, 7] = float("inf")
    logits[3] = float("-inf")
    logits[4, 9] = -float("nan")
    logits[5, : size // 2] = float("-inf")
    want = sampling_reference(logits, p)
    assert want[1:5].tolist() == [0, 0, 0, 0]
    assert int(want[5]) >= size // 2
    assert torch.equal(drawn(logits, p, device), want)


def test_rows_that_do_not_run_give_0_and_are_not_read(device: str) -> None:
    logits = torch.randn(4, 9001, generator=torch.Generator().manual_seed(3))
    logits[:, 0] = -9.0
    logits[1] = float("nan")
    rows = RowBatch.build([2, -1, 0, 1], [1] * 4, [0] * 4, exec_mask=[True, True, False, True])
    p = params(4)
    want = sampling_reference(logits, p, None, rows)
    assert want[1:3].tolist() == [0, 0]
    assert torch.equal(drawn(logits, p, device, rows), want)
    assert torch.equal(drawn(logits, p, device, rows), want), "counters were not zero again"


def test_out_and_strided_logits(device: str) -> None:
    wide = torch.randn(3, 4096, generator=torch.Generator().manual_seed(4)).to(device)
    p = to_device(params(3), device)
    out = torch.full((3, 2), -7, device=device)
    sampling_kernel(wide[:, :500], p, out=out[:, 1])
    assert out[:, 0].tolist() == [-7, -7, -7]
    assert torch.equal(out[:, 1], sampling_kernel(wide[:, :500].contiguous(), p))


def test_draws_depend_on_every_bit_of_seed_and_step(device: str) -> None:
    logits = torch.zeros(6, 256)
    everything = torch.full((6,), 1 << 20)
    p = params(6, temperature=torch.ones(6), top_k=everything)
    base = drawn(logits, p, device)
    assert torch.equal(base, sampling_reference(logits, p))
    changes: list[dict[str, Tensor]] = [
        {"seed": p.seed ^ (1 << 31)},
        {"seed": p.seed ^ (1 << 62)},
        {"step": p.step ^ 1},
        {"step": p.step ^ (1 << 40)},
    ]
    for change in changes:
        other = dataclasses.replace(p, **change)  # type: ignore[arg-type]
        got = drawn(logits, other, device)
        assert torch.equal(got, sampling_reference(logits, other))
        assert not torch.equal(got, base), change
