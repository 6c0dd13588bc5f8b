"""The tick program: its sequence, its bits, its isolation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from microturn.kernels.dmel import dmel
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import assert_bitwise_equal
from microturn.model.family import Sampling
from microturn.model.inkling import mlp
from microturn.model.interaction import InteractionConfig, InteractionFamily, InteractionModel
from microturn.model.interaction import preset as preset_config
from microturn.model.tick import TickInputs, TickLine, TickOutputs, TickSize
from microturn.runtime.arenas import Arenas

DRAWN = Sampling()
GREEDY = Sampling(text_temperature=0.0, audio_temperature=0.0)


def _config(**trunk: Any) -> InteractionConfig:
    """Tiny made smaller: two layers, one of each kind, windows that a short test overruns."""
    tiny = preset_config("interaction-tiny")
    sizes: dict[str, Any] = {
        "num_layers": 3,
        "global_layers": (1,),
        "sliding_window": 10,
        "global_window": 24,
        "rel_extent": 12,
        "log_floor": 8,
        "num_experts": 4,
    }
    return dataclasses.replace(tiny, trunk=dataclasses.replace(tiny.trunk, **(sizes | trunk)))


def _family(tick_ms: int = 100, seed: int = 0, **trunk: Any) -> InteractionFamily:
    model = InteractionModel(_config(**trunk))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return InteractionFamily(model, tick_ms=tick_ms)


@pytest.fixture(scope="module")
def family() -> InteractionFamily:
    return _family()


class Made(NamedTuple):
    """Rows in the order of the lines given."""

    ok: Tensor
    text_ids: Tensor
    codes: Tensor
    audio: Tensor


class Driver:
    """What an engine does with a family, no more: build lines, tick."""

    def __init__(self, family: InteractionFamily, num_slots: int = 6) -> None:
        self.family = family
        self.arenas = Arenas(family.arena_specs(), num_slots)
        for spec in family.arena_specs():
            data = self.arenas.view(spec.name).data
            if data.is_floating_point():
                data.fill_(float("nan"))

    def line(
        self,
        slot: int,
        audio: Tensor | None,
        context: Sequence[int] = (),
        *,
        patches: Tensor | None = None,
        seed: int = 0,
        sampling: Sampling = DRAWN,
    ) -> TickLine:
        rows = self.arenas.committed("rows", slot)
        spoken = self.arenas.committed("frames", slot)
        return TickLine(
            slot=slot,
            emits=audio is not None,
            reset=False,
            n_feedback=int(rows == 0 or spoken > 0),
            context_ids=list(context),
            audio=np.empty(0, np.float32) if audio is None else audio.numpy(),
            seed=seed,
            sampling=sampling,
            patches=None if patches is None else patches.numpy(),
        )

    @torch.inference_mode()
    def step(self, *lines: TickLine, commit: bool = True) -> Made:
        """commit False: cursors and parity are put back, which is all that a rollback is."""
        shape, arenas = self.family.shape, self.arenas
        order = sorted(range(len(lines)), key=lambda b: not lines[b].emits)
        ordered = [lines[b] for b in order]
        size = TickSize.of(ordered, shape.frames)
        inputs, made = TickInputs.allocate(size, shape), TickOutputs.allocate(size, shape)
        inputs.fill(ordered, shape.frames)
        state = [arenas.cursor("rows"), arenas.cursor("frames"), arenas.parity]
        before = [value.clone() for value in state]
        self.family.tick(inputs, made, arenas)
        for value, old in zip(state, before, strict=True):
            if not commit:
                value.copy_(old)
        back = torch.tensor(order).argsort()
        silent = len(lines) - size.speaking
        said, shown = made.text_ids.t(), made.codes.transpose(0, 1)
        text_ids = torch.cat((said, said.new_zeros(silent, shape.frames)))
        codes = torch.cat((shown, shown.new_zeros(silent, *shown.shape[1:])))
        return Made(made.ok[back], text_ids[back], codes[back], made.audio[back])

    def at(self, slot: int) -> tuple[int, int]:
        """Rows and frames committed."""
        return self.arenas.committed("rows", slot), self.arenas.committed("frames", slot)


def _speech(ticks: int, samples: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(ticks, samples, generator=g)


def _start(family: InteractionFamily) -> tuple[Tensor, Tensor]:
    codec = family.config.codec
    codes = torch.full((1, codec.num_codebooks), codec.codebook_size)
    return torch.tensor([family.config.start_id]), codes


def _seen(count: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 256, (count, 2, 40, 40, 3), generator=g, dtype=torch.int16)


def _same(a: Made, b: Made, i: int = 0, j: int = 0) -> None:
    for name in ("ok", "text_ids", "codes", "audio"):
        assert_bitwise_equal(getattr(a, name)[i], getattr(b, name)[j], name)


@pytest.mark.parametrize("tick_ms", [50, 100, 200])
def test_ticks_equal_the_whole_sequence(tick_ms: int) -> None:
    """The text logits of every output position, streamed, against one pass over the sequence: an
    image cut at random over the ticks.
    """
    family = _family(tick_ms)
    frames, trunk = family.shape.frames, family.model.trunk
    driver = Driver(family)
    streamed: list[Tensor] = []
    original = trunk.logits

    def spy(hidden: Tensor) -> Tensor:
        logits = original(hidden)
        streamed.append(logits.clone())
        return logits

    trunk.logits = spy  # type: ignore[method-assign]
    ticks = 24 // frames
    audio = _speech(ticks, family.shape.input_samples)
    context = {0: [5, 6, 7], 2: [9], ticks - 1: [3, 4]}
    image = _seen(40)
    cuts = [0, *sorted(torch.randint(0, 41, (ticks - 2,)).tolist()), 40, 40]
    seen = [image[a:b] if a < b else None for a, b in pairwise(cuts)]
    said = [
        driver.step(driver.line(0, audio[k], context.get(k, ()), patches=seen[k]))
        for k in range(ticks)
    ]

    assert family.model.visual is not None
    with torch.no_grad():
        rows = family.model.visual(image)
        hops = audio.reshape(ticks * frames, -1)
        whole = RowBatch.build([0], [ticks * frames], [0])
        heard = family.model.audio(dmel(hops, family._dmel, None, whole)).view(ticks, frames, -1)
        pieces, predicts, t = (
            [family.model.embed_feedback(*_start(family))],
            [],
            1,
        )
        for k, out in enumerate(said):
            ids = torch.tensor(context.get(k, ()), dtype=torch.int64)
            spoken = family.model.embed_feedback(out.text_ids[0], out.codes[0])
            pieces += [trunk.embed(ids), rows[cuts[k] : cuts[k + 1]], heard[k], spoken]
            t += len(ids) + cuts[k + 1] - cuts[k] + frames
            predicts += range(t - 1, t - 1 + frames)
            t += frames
        x = torch.cat(pieces)
        assert len(x) == t == driver.arenas.committed("rows", 0) + 1
        hidden = trunk(x, None, RowBatch.build([0], [t], [0]))
        want = original(hidden[predicts])
    got = torch.cat(streamed)
    assert float((got - want).abs().max()) <= 1e-4
    assert float(want.std()) > 0.1


def test_a_tick_is_one_append_pass_and_single_rows(family: InteractionFamily) -> None:
    driver = Driver(family)
    audio = _speech(2, family.shape.input_samples)
    driver.step(driver.line(0, audio[0], [7, 8]))
    assert driver.at(0) == (1 + 2 + 2 + 1, 2)
    driver.step(driver.line(0, audio[1]))
    assert driver.at(0) == (6 + 1 + 2 + 1, 4)


def test_warming_feeds_context_and_says_nothing(family: InteractionFamily) -> None:
    driver = Driver(family)
    out = driver.step(driver.line(0, None, range(10)))
    assert driver.at(0) == (11, 0)
    assert not out.audio.any() and not out.codes.any()
    audio = _speech(3, family.shape.input_samples)
    whole = Driver(family)
    split_outputs = driver.step(driver.line(0, audio[0], range(10, 14)))
    whole_outputs = whole.step(whole.line(0, audio[0], range(14)))
    _same(split_outputs, whole_outputs)


def test_a_session_is_the_same_alone_and_in_company(family: InteractionFamily) -> None:
    audio = _speech(8, family.shape.input_samples)
    alone = Driver(family)
    images = [_seen(k, seed=k) if k % 2 else None for k in range(8)]
    want = [alone.step(alone.line(0, audio[k], [k], patches=images[k], seed=11)) for k in range(8)]
    crowd = Driver(family)
    other = _speech(8, family.shape.input_samples, seed=9)
    for k in range(8):
        lines = [crowd.line(3, audio[k], [k], patches=images[k], seed=11)]
        if k % 3 != 1:
            seen = _seen(5 + k, seed=20) if k > 1 else None
            lines.insert(0, crowd.line(1, other[k], range(k), patches=seen, seed=2))
        if k > 2:
            lines.append(
                crowd.line(5, other[k] if k != 4 else None, [1, 2], seed=11, sampling=GREEDY)
            )
        got = crowd.step(*lines)
        _same(want[k], got, 0, next(i for i, line in enumerate(lines) if line.slot == 3))


def test_an_uncommitted_tick_never_happened(family: InteractionFamily) -> None:
    audio = _speech(6, family.shape.input_samples)
    steady, shaken = Driver(family), Driver(family)
    for k in range(6):
        for _ in range(k % 3):
            shaken.step(shaken.line(2, _speech(1, 1600, seed=k)[0], range(20)), commit=False)
        _same(
            steady.step(steady.line(2, audio[k], [k])), shaken.step(shaken.line(2, audio[k], [k]))
        )


def test_the_next_tenant_starts_fresh(family: InteractionFamily) -> None:
    audio = _speech(5, family.shape.input_samples)
    used = Driver(family)
    for k in range(5):
        used.step(used.line(1, _speech(5, 1600, seed=4)[k], range(9)))
    used.arenas.reset(1)
    fresh = Driver(family)
    for k in range(5):
        _same(fresh.step(fresh.line(0, audio[k])), used.step(used.line(1, audio[k])))


def test_a_broken_row_is_not_ok_and_harms_nobody(family: InteractionFamily) -> None:
    audio = _speech(3, family.shape.input_samples)
    calm, driver = Driver(family), Driver(family)
    for d in (calm, driver):
        d.step(d.line(0, audio[0]), d.line(1, audio[0]))
    driver.arenas.view("trunk.0.kv.k").data[1] = float("inf")
    got = driver.step(driver.line(0, audio[1]), driver.line(1, audio[1]))
    want = calm.step(calm.line(0, audio[1]), calm.line(1, audio[1]))
    assert got.ok.tolist() == [True, False]
    _same(want, got)
    assert driver.arenas.committed("frames", 1) == 2


def test_the_seed_decides_what_is_drawn(family: InteractionFamily) -> None:
    audio = _speech(4, family.shape.input_samples)

    def codes(seed: int, sampling: Sampling) -> Tensor:
        driver = Driver(family)
        outs = [driver.step(driver.line(0, a, seed=seed, sampling=sampling)) for a in audio]
        return torch.cat([o.codes for o in outs])

    assert torch.equal(codes(1, Sampling()), codes(1, Sampling()))
    assert not torch.equal(codes(1, Sampling()), codes(2, Sampling()))
    assert torch.equal(codes(1, GREEDY), codes(2, GREEDY))


def test_feedback_reaches_the_next_position(family: InteractionFamily) -> None:
    """The control for the feedback arena: other words said, other logits after them."""
    audio = _speech(3, family.shape.input_samples)
    outs = []
    for poison in (False, True):
        driver = Driver(family)
        driver.step(driver.line(0, audio[0], sampling=GREEDY))
        if poison:
            view = driver.arenas.view("feedback")
            view.data[:, 0, 0] = (view.data[:, 0, 0] + 1) % 500
        outs.append(driver.step(driver.line(0, audio[1], sampling=GREEDY)))
    assert not torch.equal(outs[0].audio, outs[1].audio)


def test_an_image_changes_what_follows_and_only_that(family: InteractionFamily) -> None:
    audio = _speech(3, family.shape.input_samples)
    plain, seeing = Driver(family), Driver(family)
    for d in (plain, seeing):
        d.step(d.line(0, audio[0]), d.line(1, audio[0]))
    image = _seen(12)
    want = plain.step(plain.line(0, audio[1]), plain.line(1, audio[1]))
    got = seeing.step(seeing.line(0, audio[1], patches=image), seeing.line(1, audio[1]))
    _same(want, got, 1, 1)
    assert not torch.equal(want.audio[0], got.audio[0])
    assert [seeing.at(b)[0] - plain.at(b)[0] for b in (0, 1)] == [12, 0]


def test_every_pixel_and_the_order_of_patches_show_in_the_logits(
    family: InteractionFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = family.model.trunk
    logits: list[Tensor] = []
    original = trunk.logits
    monkeypatch.setattr(trunk, "logits", lambda h: logits.append(original(h)) or original(h))
    audio, image = _speech(1, family.shape.input_samples)[0], _seen(6)
    changed = image.clone()
    changed[5, 1, 39, 39] = 255 - changed[5, 1, 39, 39]
    for patches in (image, image, changed, image.flip(0)):
        driver = Driver(family)
        driver.step(driver.line(0, audio, patches=patches, sampling=GREEDY))
    first = [logits[k * family.shape.frames] for k in range(4)]
    assert_bitwise_equal(first[0], first[1])
    assert all(float((first[0] - other).abs().max()) > 1e-4 for other in first[2:])


def test_a_model_without_eyes_refuses_patches_and_says_that_it_sees_nothing() -> None:
    config = dataclasses.replace(_config(), vision=None)
    model = InteractionModel(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    blind = InteractionFamily(model)
    assert not blind.sees and _family().sees
    driver = Driver(blind)
    audio = _speech(1, blind.shape.input_samples)[0]
    with pytest.raises(ValueError, match="has no vision tower"):
        driver.step(driver.line(0, audio, patches=_seen(1)))
    assert bool(driver.step(driver.line(0, audio)).ok)


@pytest.mark.parametrize("speaking", [2, 0])
def test_experts_that_a_tick_touches_are_counted(
    family: InteractionFamily, monkeypatch: pytest.MonkeyPatch, speaking: int
) -> None:
    """Against what the routers said: rows and lines that only fill the buffers up count nothing."""
    shape, driver = family.shape, Driver(family)
    seen: list[Any] = []
    inner: Any = vars(mlp)["router"]

    def router(*args: Any) -> Any:
        seen.append(inner(*args))
        return seen[-1]

    monkeypatch.setattr(mlp, "router", router)
    speech = _speech(2, shape.input_samples)
    lines = [driver.line(slot, speech[slot], [7]) for slot in range(speaking)]
    lines.append(driver.line(2, None, [5, 6]))
    size = TickSize(4, 40, 16, 0, max(speaking, 3 * bool(speaking)))
    inputs, made = TickInputs.allocate(size, shape), TickOutputs.allocate(size, shape)
    inputs.fill(lines, shape.frames)
    made.experts.fill_(-1)
    with torch.inference_mode():
        family.tick(inputs, made, driver.arenas)
    layers = family.config.trunk.num_layers - family.config.trunk.num_dense_layers
    rows = sum(line.num_rows(shape.frames) for line in lines)
    passes = [rows] + [speaking] * (shape.frames - 1) * bool(speaking)
    assert layers and len(seen) == layers * len(passes)
    counts = []
    for i, live in enumerate(passes):
        chosen = [routing.topk_ids[:live] for routing in seen[i * layers : (i + 1) * layers]]
        counts.append(sum(len(set(ids.flatten().tolist())) for ids in chosen))
    assert made.experts.tolist() == counts + [0] * (shape.frames - len(passes))
    filled = sum(len(set(r.topk_ids.flatten().tolist())) for r in seen[:layers])
    assert counts[0] <= filled and min(counts) > 0
