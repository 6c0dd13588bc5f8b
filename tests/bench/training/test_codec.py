"""Training the codec: the step, its resumption, and the score of what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("espeakng_loader")
pytest.importorskip("pocketsphinx")

from microturn.bench.interactivity.recogniser import Recogniser
from microturn.bench.interactivity.vocabulary import SPOKEN
from microturn.bench.training import batched, codec, codec_eval, speaking
from microturn.bench.training.codec import Recipe, Training, train
from microturn.bench.training.linear_start import components, start_linear
from microturn.bench.training.losses import distance
from microturn.bench.training.quantiser import Books, quantise
from microturn.bench.training.voice import WORDS, utterance
from microturn.model.interaction.presets import TINY_CODEC, preset
from microturn.model.mimi import Mimi, MimiConfig, load_mimi

TINY = MimiConfig(
    n_filters=4, ratios=(6, 5, 5, 4), compress=1, dim=16, num_layers=1, num_heads=2, ff_dim=32,
    context=400, num_codebooks=3, codebook_size=16, codebook_dim=8,
)  # fmt: skip
RECIPE = Recipe(seed=3, steps=4, batch=2, frames=8, joint_from=2)


@pytest.fixture(autouse=True)
def _few_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("microturn.bench.training.voice.WORDS", WORDS[:3])
    monkeypatch.setattr(codec, "WORDS", WORDS[:3])
    yield


def fresh(seed: int = 0) -> Mimi:
    mimi = Mimi(TINY)
    mimi.reset_parameters(torch.Generator().manual_seed(seed))
    return mimi


def test_the_batched_codec_is_the_codec() -> None:
    mimi = fresh()
    for layer in (*mimi.encoder.transformer.layers, *mimi.decoder.transformer.layers):
        with torch.no_grad():
            layer.scale1.fill_(0.5)
            layer.scale2.fill_(0.5)
    audio = 0.1 * torch.randn(2, 6 * TINY.frame_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latents = batched.encode(mimi.encoder, audio)
        decoded = batched.decode(mimi.decoder, latents)
        for i in range(2):
            alone = mimi.encoder.latents(audio[i])
            torch.testing.assert_close(latents[i], alone, atol=1e-5, rtol=1e-5)
            heard = mimi.decoder.decode_latents(alone)
            torch.testing.assert_close(decoded[i], heard, atol=1e-5, rtol=1e-5)


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Cut at step 3 of 4; the encoder learns from step 2 on."""
    whole = train(tmp_path / "whole", RECIPE, TINY)
    cut = Training.fresh(RECIPE, TINY)
    for _ in range(2):
        cut.advance()
    assert torch.equal(cut.codec.encoder.last.weight, cut.mean["encoder.last.weight"])
    cut.advance()
    (tmp_path / "cut").mkdir()
    cut.save(tmp_path / "cut" / "state.pt")
    resumed = train(tmp_path / "cut", RECIPE, TINY)
    assert resumed.step == whole.step == 4
    for name, wanted in whole.codec.state_dict().items():
        assert torch.equal(resumed.codec.state_dict()[name], wanted), name
        assert torch.equal(resumed.mean[name], whole.mean[name]), name
    cut.recipe = replace(RECIPE, seed=4)
    cut.advance()
    assert not torch.equal(cut.codec.encoder.last.weight, whole.codec.encoder.last.weight)
    assert not torch.equal(cut.mean["encoder.last.weight"], cut.codec.encoder.last.weight)
    assert (tmp_path / "whole" / "log.jsonl").exists()


def test_the_linear_codec_is_near_what_it_hears() -> None:
    heard = torch.cat([codec.recordings(RECIPE, step, TINY) for step in range(4)])

    def noise_to_signal(mimi: Mimi) -> float:
        with torch.no_grad():
            decoded = batched.decode(mimi.decoder, batched.encode(mimi.encoder, heard))
        return float((decoded - heard).square().sum() / heard.square().sum())

    mimi = fresh()
    assert noise_to_signal(mimi) > 1
    start_linear(mimi, heard)
    assert noise_to_signal(mimi) < 0.7


def test_components_rebuild_blocks() -> None:
    blocks = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    blocks[:, 6:] = 0.5 * blocks[:, :6]
    errors = []
    for count in (2, 6):
        found = components(blocks, count, 0.1)
        coded = blocks @ found.analysis.T
        assert coded[:, 0].std() == pytest.approx(0.1, rel=0.1)
        errors.append(float((coded @ found.synthesis.T - blocks).norm() / blocks.norm()))
    assert errors[1] < 1e-3 < 0.3 < errors[0]


def test_codes_of_training_are_those_of_the_codec() -> None:
    mimi = fresh()
    audio = torch.from_numpy(codec.recordings(RECIPE, 0, TINY)[0].numpy())
    latents = mimi.encoder.latents(audio)
    given = quantise(mimi, latents)
    assert torch.equal(given.codes, mimi.encode(audio))
    torch.testing.assert_close(given.latents, mimi.decoder.codebooks(given.codes, None))
    given.latents.sum().backward()
    assert mimi.encoder.first.weight.grad is not None, "nothing passes straight through"


def test_books_go_where_the_data_is() -> None:
    mimi = fresh()
    books = Books(mimi)
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(400, TINY.dim, generator=generator)

    def error() -> float:
        return float(quantise(mimi, x).commitment.detach())

    before = error()
    books.begin(mimi, x, generator)
    made = error()
    assert made < 0.3 * before
    mimi.decoder.codebooks.tables.data[1, 5:] = 100.0
    books.sums.copy_(mimi.decoder.codebooks.tables)
    moved = 0
    for _ in range(200):
        given = quantise(mimi, x)
        moved += books.update(given.codes, given.residuals, generator)
    assert moved >= 11, "rows that nothing falls to stay where they are"
    assert error() < 1.2 * made


def test_distance_is_zero_of_the_same_and_grows() -> None:
    audio = torch.from_numpy(utterance(np.random.default_rng(0), 2, canonical=1.0).audio)[None]
    noise = torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
    far = [float(distance(audio + by * noise, audio, 24_000).total) for by in (0.0, 0.003, 0.03)]
    assert far[0] == pytest.approx(0, abs=1e-5)
    assert far[0] < far[1] < far[2]


def test_every_word_a_task_expects_can_be_said() -> None:
    assert set(SPOKEN) <= set(WORDS)
    assert len(set(WORDS)) == len(WORDS) >= 40


class _Through:
    """A codec that gives back what it gets, or that times a window of noise."""

    config = TINY

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def encode(self, audio: Tensor) -> Tensor:
        return audio

    def decode(self, codes: Tensor) -> Tensor:
        loud = codes.abs() > 1e-3
        return codes + self.noise * loud * torch.randn(
            codes.shape, generator=torch.Generator().manual_seed(0)
        )


def test_the_score_tells_speech_from_noise() -> None:
    listener = Recogniser(WORDS)
    same, noisy = (codec_eval.score(_Through(n), listener, "own", 2) for n in (0.0, 1.0))  # type: ignore[arg-type]
    assert same.words == 10 and same.original == same.decoded == same.kept == 100
    assert 70 < same.low < same.high <= 100 and not same.mistaken
    assert same.by_type == 100 and same.types == 3
    assert noisy.types == 3 and noisy.by_type < 50 and noisy.high < noisy.type_high
    assert noisy.original == 100 and noisy.decoded < 50 and noisy.mistaken


def test_the_shipped_codec_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every row of its books in its neighbour's place it is not."""
    monkeypatch.setattr("microturn.bench.training.voice.WORDS", WORDS)
    listener = Recogniser(WORDS)
    mimi = load_mimi(TINY_CODEC, config=preset("interaction-tiny").codec)
    assert codec_eval.score(mimi, listener, "own", 2).decoded >= 80
    mimi.decoder.codebooks.tables.copy_(mimi.decoder.codebooks.tables.roll(1, 1))
    monkeypatch.setattr(mimi, "encode", lambda audio: mimi.encoder(audio, books))
    books = mimi.decoder.codebooks.tables.roll(-1, 1)
    assert codec_eval.score(mimi, listener, "own", 1).decoded <= 40
    assert TINY_CODEC.stat().st_size < 7e6


def test_codes_of_the_shipped_codec_are_numbers_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model has learnt them: another decoder may take its place, other codes may not."""
    monkeypatch.setattr(speaking, "SPOKEN", WORDS[:2])
    mimi = load_mimi(TINY_CODEC, config=preset("interaction-tiny").codec)
    said = speaking.voicing(mimi)
    first, second = (said.words[i].amax(1) for i in (1, 2))
    assert said.silence.tolist() == [639, 639]
    assert first[0] == 0 and first[:-1].diff().eq(1).all()
    assert second[0] == first[-2] + 1 and second[:-1].diff().eq(1).all()
    mimi.decoder.codebooks.tables.copy_(mimi.decoder.codebooks.tables.roll(1, 1))
    assert speaking.voicing(mimi).silence.tolist() != [639, 639]
