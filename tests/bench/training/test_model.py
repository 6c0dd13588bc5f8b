"""What the model learns from is what the runtime feeds it; training learns and resumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microturn.bench.interactivity.figures import Figure
from microturn.bench.interactivity.scene import Expected, Film, Scene, Shot
from microturn.bench.interactivity.speech import SAMPLE_RATE, Word
from microturn.bench.interactivity.vocabulary import SPOKEN
from microturn.bench.training.batch import Batch, Voicing, collate, embed, outputs
from microturn.bench.training.curriculum import STAGES, Recipe, Stage, scripts
from microturn.bench.training.lexicon import Lexicon
from microturn.bench.training.model import Training, train
from microturn.bench.training.script import HORIZONS, Script, script
from microturn.model.family import Sampling
from microturn.model.interaction import load_family
from microturn.model.interaction.model import InteractionModel
from microturn.runtime import Runtime, VirtualClock


@pytest.fixture(scope="module")
def family() -> Any:
    return load_family("interaction-tiny", seed=3, trained=False)


@pytest.fixture(scope="module")
def lexicon(family: Any) -> Lexicon:
    return Lexicon(family.tokenizer, family.listen_id)


@pytest.fixture(scope="module")
def voicing(family: Any) -> Voicing:
    shape, draw = family.shape, torch.Generator().manual_seed(1)
    q, size = shape.num_codebooks, shape.codebook_size

    def codes(frames: int) -> torch.Tensor:
        return torch.randint(size, (frames, q), generator=draw)

    return Voicing({1 + i: codes(5 + i % 3) for i in range(len(SPOKEN))}, codes(1)[0])


def scene(seconds: float = 3.0, film: Film | None = None) -> Scene:
    rng = np.random.default_rng(0)
    audio = (0.05 * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)
    expected = [Expected("one", 1.02), Expected("two", 2.22)]
    inside = tuple(want for want in expected if want.at < seconds)
    heard = (Word("count", 0.1, 0.42), Word("harbour", 0.45, 0.8))
    return Scene("a", "a", "train", audio, film, inside, heard)


def test_words_are_written_a_tick_before_they_are_heard(lexicon: Lexicon) -> None:
    made = script(scene(), lexicon)
    assert made.ticks == 30 and made.bins.shape == (60, 80) and made.pictures is None
    at = {int(i): int(made.text[i]) for i in np.flatnonzero(made.text != lexicon.listen_id)}
    assert (
        at
        == {
            10: lexicon.heard["count"],
            18: lexicon.said["one"],  # 1.02 s, less the tick, is in slot 18
            19: lexicon.other,  # due in slot 18, which was taken
            42: lexicon.said["two"],
        }
        or at[18] == lexicon.said["one"]
    )
    count, other = lexicon.classes["count"], len(lexicon.classes) + 1
    assert made.hearing[:19].tolist() == [0] * 2 + [count] * 7 + [other] * 9 + [0]
    one, two = (1 + SPOKEN.index(word) for word in ("one", "two"))
    assert made.word[18] == 0 and made.word[19] == one and made.since[21] == 2
    assert made.word[42] == one and made.word[43] == two and made.since[43] == 0
    assert made.pending[18] == one and made.pending[19] == two and made.pending[43] == 0
    assert made.due[18] == 1 and made.due[43] == 0
    assert made.due[0] == 1 + HORIZONS.index(1.0), "0.9 s ahead"


def test_teaching_rows_are_the_runtimes_rows(
    family: Any, lexicon: Lexicon, voicing: Voicing
) -> None:
    """A session's own greedy outputs, taught back, are what the model predicts slot by slot."""
    film = Film((Shot(0.0, Figure()),))
    shown = scene(1.0, film)
    greedy = Sampling(text_temperature=0.0, audio_temperature=0.0)
    with Runtime(model=family, max_sessions=1, clock=VirtualClock()) as runtime:
        session = runtime.open(sampling=greedy)
        said = []
        for tick, (_, picture) in enumerate(film.pictures(1.0)):
            session.push_audio(shown.audio[tick * 1600 : (tick + 1) * 1600], SAMPLE_RATE)
            session.push_image(picture)
            runtime.tick()
            said.append(session.poll())
    codes = torch.from_numpy(np.concatenate([output.codes for output in said]))
    model: InteractionModel = family.model
    made = script(shown, lexicon)
    (batch,) = [collate([made], voicing, lexicon.listen_id)._replace(codes=codes[None])]
    with torch.no_grad():
        text = torch.full_like(batch.text, lexicon.listen_id)
        for slot in range(text.shape[1]):  # each slot's text follows from those before
            hidden = taught(model, batch._replace(text=text))
            text[0, slot] = model.trunk.logits(hidden[0, slot : slot + 1]).argmax(-1)
        hidden = taught(model, batch._replace(text=text))
        drawn = model.depth.teacher_forced(hidden[0], text[0], codes).argmax(-1)
    spoken = [event for output in said for event in output.events]
    written = {int(e.ms // 50): e.token_id for e in spoken}
    assert written == {i: int(t) for i, t in enumerate(text[0]) if int(t) != lexicon.listen_id}
    assert torch.equal(drawn, codes)


def taught(model: InteractionModel, batch: Batch) -> torch.Tensor:
    x, rows = embed(model, batch)
    return outputs(model.trunk(x, None, rows), batch)[None]


def test_batches_do_not_mix_what_sees_and_what_does_not(lexicon: Lexicon, voicing: Voicing) -> None:
    blind = script(scene(0.3), lexicon)
    seeing = script(scene(0.5, Film((Shot(0.0, Figure()),))), lexicon)
    with pytest.raises(ValueError, match="all have pictures, or none"):
        collate([blind, seeing], voicing, lexicon.listen_id)
    batch = collate([seeing, script(scene(0.3, Film((Shot(0.0, Figure()),))), lexicon)], voicing, 9)
    assert batch.patches is not None and batch.patches.shape == (2, 5, 2, 40, 40, 3)
    assert batch.real.sum(1).tolist() == [10, 6] and batch.text[1, 6:].eq(9).all()
    assert torch.equal(batch.codes[0, -1], voicing.silence)


@pytest.fixture
def make_training(lexicon: Lexicon) -> Callable[[Recipe], Training]:
    def make(recipe: Recipe) -> Training:
        return Training(
            load_family("interaction-tiny", seed=5, trained=False).model, recipe, lexicon
        )

    return make


SHORT = Recipe(batch=1, rate=3e-3, warm=1, stages=(Stage("all", 2, {"drill": 1.0}),))


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(
    make_training: Callable[[Recipe], Training],
    voicing: Voicing,
    lexicon: Lexicon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from microturn.bench.training import curriculum

    def short(recipe: Recipe, step: int, lexicon: Lexicon) -> list[Script]:
        return [script(scene(1.3 + 0.1 * step), lexicon)]

    monkeypatch.setattr(curriculum, "scripts", short)
    whole, cut, again = (make_training(SHORT) for _ in range(3))
    train(whole, tmp_path / "whole", voicing, workers=0)
    train(cut, tmp_path / "cut", voicing, workers=0, until=1)
    train(again, tmp_path / "cut", voicing, workers=0)
    assert again.step == whole.step == 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_scene_is_learnt(
    make_training: Callable[[Recipe], Training], voicing: Voicing, lexicon: Lexicon
) -> None:
    stages = (Stage("one", 40, {"drill": 1.0}),)
    training = make_training(dataclasses.replace(SHORT, warm=3, stages=stages))
    made = [script(scene(1.3), lexicon)]
    first = training.advance(made, voicing)
    for _ in range(7):
        last = training.advance(made, voicing)
    assert last["total"] < 0.7 * first["total"] and last["depth"] < first["depth"]
    assert last["crowded"] >= 1


def test_stages_have_known_tasks_and_their_scenes_are_the_same_again(lexicon: Lexicon) -> None:
    from microturn.bench.training.curriculum import MAKERS

    for stage in STAGES:
        assert set(stage.mixture) <= set(MAKERS)
        assert sum(stage.mixture.values()) == pytest.approx(1.0)
    recipe = Recipe(batch=2)
    stage, rate = recipe.at(0)
    assert stage.name == "hearing" and rate < recipe.rate
    assert recipe.at(recipe.stages[0].steps)[0] is recipe.stages[1]
    pytest.importorskip("espeakng_loader")
    one, two = (scripts(recipe, 7, lexicon) for _ in range(2))
    assert all(np.array_equal(a.bins, b.bins) for a, b in zip(one, two, strict=True))
    assert any((a.text != lexicon.listen_id).any() for a in one)


def test_words_are_voiced_by_the_codec_they_are_decoded_with() -> None:
    pytest.importorskip("espeakng_loader")
    from microturn.bench.training.speaking import voicing
    from microturn.bench.training.voice import CODEC_RATE, spoken
    from microturn.model.interaction.presets import preset
    from microturn.model.mimi import Mimi

    codec = Mimi(preset("interaction-tiny").codec)
    codec.reset_parameters(torch.Generator().manual_seed(0))
    voices = voicing(codec)
    assert set(voices.words) == set(range(1, len(SPOKEN) + 1))
    frames = voices.words[1 + SPOKEN.index("seventeen")]
    seconds = len(spoken("seventeen")) / SAMPLE_RATE
    assert len(frames) == -(-int(seconds * CODEC_RATE) // 1200) + 1
    assert frames.dtype == torch.int64 and not torch.equal(frames[0], voices.silence)


def test_a_medley_asks_for_one_thing_after_the_other() -> None:
    pytest.importorskip("espeakng_loader")
    from microturn.bench.interactivity.splits import Split
    from microturn.bench.interactivity.tasks.repcount import repcount
    from microturn.bench.training.medley import _joined, show

    rng = np.random.default_rng(1)
    made = show(Split("train"), rng, "a", "clean")
    assert made.film is not None and made.heard[-1].end < made.seconds
    times = [want.at for want in made.expected]
    assert times == sorted(times) and made.expected[-1].word != made.expected[0].word
    second = repcount(Split("train"), rng, "b", "clean")
    joined = _joined(scene(2.0), second, "show")
    assert joined.seconds == pytest.approx(2.0 + second.seconds)
    counted = [want.at - 2.0 for want in joined.expected if want.at > 2.3]
    assert counted == pytest.approx([want.at for want in second.expected])
    assert joined.film is not None and second.film is not None
    moving = second.facts["start"] + 0.3
    assert np.array_equal(
        joined.film.picture(2.0 + round(moving, 1)), second.film.picture(round(moving, 1))
    )
    assert not np.array_equal(joined.film.picture(0.5), second.film.picture(round(moving, 1)))
