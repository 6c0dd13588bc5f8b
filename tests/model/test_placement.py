"""Weights as a device keeps them: in 32, 16 or 8 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from microturn.kernels.quantized import Quantized, plain
from microturn.model.interaction import load_family
from microturn.model.interaction.placement import eight_bit_tensors


@pytest.fixture(scope="module")
def placed() -> dict[str, Any]:
    families = {
        width: load_family("interaction-tiny", seed=3, trained=False)
        for width in ("fp32", "bf16", "fp8")
    }
    for width, family in families.items():
        family.to(torch.device("cpu"), width)
    return families


def test_matrices_of_the_trunk_are_stored_in_eight_bits(placed: dict[str, Any]) -> None:
    whole, small = placed["fp32"].model, placed["fp8"].model
    weight = small.trunk.layers[0].attn.qkvr
    assert isinstance(weight, Quantized)
    want = whole.trunk.layers[0].attn.qkvr
    error = (plain(weight, torch.float32) - want).square().mean().sqrt()
    assert 0 < float(error / want.square().mean().sqrt()) < 0.04
    assert small.trunk.embed_norm.gain.dtype == small.depth.qkv.dtype == torch.bfloat16
    assert small.trunk.layers[1].mlp.bias.dtype == torch.float32, "selection stays exact"
    assert not eight_bit_tensors(whole) and not eight_bit_tensors(placed["bf16"].model)


def test_a_digest_is_of_the_weights_as_they_are_stored(placed: dict[str, Any]) -> None:
    digests = {family.digest() for family in placed.values()}
    assert len(digests) == 3
    again = load_family("interaction-tiny", seed=3, trained=False)
    assert again.digest() == placed["fp32"].digest()
    name, values = next(iter(eight_bit_tensors(placed["fp8"].model).items()))
    before = placed["fp8"].digest()
    values.view(torch.uint8).view(-1)[5] ^= 1
    assert placed["fp8"].digest() != before, name
    values.view(torch.uint8).view(-1)[5] ^= 1
    assert placed["fp8"].digest() == before


def test_unknown_widths_are_named(placed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="fp4"):
        placed["fp32"].to(torch.device("cpu"), "fp4")
