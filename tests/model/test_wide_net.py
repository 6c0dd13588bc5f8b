"""Random models and sessions against the authors' libraries: the small size of `make oracle-long`.

Draws are the same in every run; the long run takes a seed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings

import microturn.model.inkling.layer as layer_module
from microturn.kernels.conv_residual_norm import conv_residual_norm
from microturn.model.mimi import MimiConfig
from oracles import inkling, mimi
from oracles import net as net_module
from oracles.net import (
    CodecCase,
    TooClose,
    TrunkCase,
    codec_cases,
    codec_differences,
    trunk_cases,
    trunk_differences,
)

pytestmark = pytest.mark.oracle

net = settings(
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@settings(net, max_examples=20)
@given(trunk_cases())
def test_any_trunk_gives_the_logits_of_transformers(case: TrunkCase) -> None:
    try:
        differences = trunk_differences(case)
    except TooClose:
        reject()
    assert max(differences.values()) <= inkling.BAR, differences


@settings(net, max_examples=20)
@given(codec_cases())
def test_any_codec_gives_the_codes_and_audio_of_moshi(case: CodecCase) -> None:
    try:
        differences = codec_differences(case)
    except TooClose:
        reject()
    assert max(differences.values()) <= mimi.BAR, differences


TRUNK = TrunkCase(
    inkling.FEW, mels=5, bins=4, lengths=(40, 17), audio=0.3, most=9, singles=5, seed=1
)
CODEC = CodecCase(
    MimiConfig(
        n_filters=4,
        ratios=(3, 2),
        dim=16,
        num_layers=1,
        num_heads=2,
        ff_dim=16,
        context=5,
        num_codebooks=3,
        codebook_size=32,
        codebook_dim=16,
    ),
    lengths=(20, 12),
    most=3,
    seed=1,
)


def test_a_fault_in_the_trunk_is_caught_however_it_is_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(trunk_differences(TRUNK).values()) <= inkling.BAR

    def one_less(x: Any, weights: Any, *rest: Any) -> Any:
        taps = weights.taps.clone()
        taps[:, -1] -= 1
        return conv_residual_norm(x, dataclasses.replace(weights, taps=taps), *rest)

    monkeypatch.setattr(layer_module, "conv_residual_norm", one_less)
    assert min(trunk_differences(TRUNK).values()) > 10 * inkling.BAR


def test_a_fault_in_the_codec_is_caught_however_it_is_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(codec_differences(CODEC).values()) <= mimi.BAR

    def one_key_more(*arguments: Any, **options: Any) -> Any:
        ours, theirs = pair(*arguments, **options)
        for side in (ours.encoder, ours.decoder):
            side.transformer.config = dataclasses.replace(ours.config, context=6)
        return ours, theirs

    pair = mimi.pair
    monkeypatch.setattr(mimi, "pair", one_key_more)
    assert min(codec_differences(CODEC).values()) > 10 * mimi.BAR


def test_draws_that_hang_on_rounding_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_module, "MIN_GAP", 1.0)
    monkeypatch.setattr(net_module, "MIN_CODE_GAP", 1.0)
    with pytest.raises(TooClose):
        trunk_differences(TRUNK)
    with pytest.raises(TooClose):
        codec_differences(CODEC)
