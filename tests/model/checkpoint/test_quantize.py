"""Storage of weights in eight bits: the error, and the two properties that chose the blocks."""

from __future__ import annotations

import pytest
import torch

from microturn.model.checkpoint import dequantize, quantize
from microturn.model.checkpoint.quantization import round_weight


def relative_rms(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def spread_out(rows: int = 96, columns: int = 300) -> torch.Tensor:
    """Rows of magnitudes from 1e-30 to 1e30."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, columns, generator=generator)
    return values * torch.logspace(-30, 30, rows)[:, None]


def test_the_error_is_that_of_three_bits() -> None:
    """Half a unit of 2^-3 at most; at the bottom of a block a subnormal's step of its scale."""
    weight = spread_out()
    made = quantize(weight)
    assert made.values.shape == weight.shape and made.scales.shape == (96, 3)
    assert made.values.dtype == torch.float8_e4m3fn and made.scales.dtype == torch.float8_e8m0fnu
    error = (dequantize(made) - weight).abs()
    scale = (made.scales.view(torch.uint8).double() - 127).exp2()
    scale = scale.repeat_interleave(128, 1)[:, :300]
    assert bool((error <= torch.maximum(weight.abs().double() / 16, scale / 1024)).all())
    for row in range(96):
        assert 0.02 < relative_rms(dequantize(made)[row], weight[row]) < 0.03


def test_the_largest_of_a_block_fills_its_range() -> None:
    made = quantize(spread_out())
    padded = torch.nn.functional.pad(made.values.float(), (0, 84)).view(96, 3, 128)
    assert bool((padded.abs().amax(-1) > 224 * 15 / 16).all())
    at_the_edge = torch.tensor([[448.0], [449.0], [480.0], [2.0**120], [1e-45], [0.0]])
    assert dequantize(quantize(at_the_edge)).flatten().tolist() == [
        448.0,
        448.0,
        480.0,
        2.0**120,
        0.0,
        0.0,
    ]


def test_what_is_stored_is_exact_in_bf16() -> None:
    restored = dequantize(quantize(spread_out()))
    assert torch.equal(restored, restored.bfloat16().float())
    assert bool((restored != 0).any(1).all())


def test_any_slice_of_rows_gives_the_bits_of_the_whole() -> None:
    weight = spread_out().view(4, 24, 300)
    whole = quantize(weight)
    part = quantize(weight[1:3, 5:17])
    assert torch.equal(part.values.float(), whole.values[1:3, 5:17].float())
    assert torch.equal(part.scales.view(torch.uint8), whole.scales[1:3, 5:17].view(torch.uint8))


def test_quantising_again_changes_nothing() -> None:
    once = dequantize(quantize(spread_out()))
    assert torch.equal(dequantize(quantize(once)), once)


def test_values_that_are_not_finite_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="infinities or NaN"):
            quantize(torch.tensor([[1.0, value]]))


@pytest.mark.parametrize("kind", ["matrix", "plain", "scalar"])
def test_each_storage_type_rounds_what_it_should(kind: str) -> None:
    weight = torch.randn(8, 256)
    for dtype, bound in (("fp32", 0.0), ("bf16", 0.003), ("fp8", 0.03)):
        got = weight.clone()
        round_weight(got, dtype, kind)  # type: ignore[arg-type]
        error = relative_rms(got, weight)
        if kind == "scalar" or dtype == "fp32":
            assert error == 0
        elif dtype == "fp8" and kind == "matrix":
            assert 0.02 < error < bound
        else:
            assert 0.001 < error < 0.003
