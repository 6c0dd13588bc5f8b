"""The codec as a stream: any cut, any company, any former tenant, and the bits stay."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import assert_bitwise_equal, assert_close
from microturn.model.mimi import Mimi, MimiConfig
from oracles.streams import CodecStream, random_calls

SMALL = MimiConfig(
    n_filters=8,
    ratios=(3, 2),
    compress=2,
    dim=32,
    num_layers=2,
    num_heads=2,
    ff_dim=48,
    context=11,
    num_codebooks=4,
    codebook_size=40,
    codebook_dim=16,
)
"""Same topology; 12 samples a frame, so that a test may overrun the context many times."""

DIRECTIONS = pytest.mark.parametrize("direction", ["encode", "decode"])


def build(config: MimiConfig = SMALL) -> Mimi:
    codec = Mimi(config)
    codec.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name.rsplit(".", 1)[1].startswith(("scale", "bias", "norm")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return codec.requires_grad_(False)


@pytest.fixture(scope="module")
def codec() -> Mimi:
    torch.manual_seed(5)
    return build()


def inputs(codec: Mimi, direction: str, frames: int) -> Tensor:
    if direction == "encode":
        return 0.3 * torch.randn(frames * codec.config.frame_size)
    return torch.randint(codec.config.codebook_size, (frames, codec.config.num_codebooks))


def whole(codec: Mimi, direction: str, x: Tensor) -> Tensor:
    return codec.encode(x) if direction == "encode" else codec.decode(x)


@DIRECTIONS
def test_cuts_and_company_do_not_show_in_the_bits(codec: Mimi, direction: str) -> None:
    sequences = {slot: inputs(codec, direction, n) for slot, n in ((4, 61), (0, 40), (2, 23))}
    frames = {4: 61, 0: 40, 2: 23}
    with torch.inference_mode():
        got = [
            CodecStream(codec, direction, 5).feed(
                sequences, random_calls(frames, random.Random(seed))
            )
            for seed in range(3)
        ]
        for slot, x in sequences.items():
            alone = CodecStream(codec, direction, 1).feed({0: x}, [{0: 1}] * frames[slot])[0]
            for other in got:
                assert_bitwise_equal(other[slot], alone, f"slot {slot}")


@DIRECTIONS
def test_the_stream_is_the_whole_sequence(codec: Mimi, direction: str) -> None:
    x = inputs(codec, direction, 60)
    with torch.inference_mode():
        stream = CodecStream(codec, direction, 1).feed(
            {0: x}, random_calls({0: 60}, random.Random(7))
        )[0]
        want = whole(codec, direction, x)
    if direction == "encode":
        assert torch.equal(stream, want)
    else:
        assert_close(stream, want, 1e-6)


@DIRECTIONS
def test_kernels_of_one_row_carry_nothing(direction: str) -> None:
    one = build(dataclasses.replace(SMALL, last_kernel_size=1, residual_kernel_size=1))
    x = inputs(one, direction, 20)
    with torch.inference_mode():
        stream = CodecStream(one, direction, 1).feed(
            {0: x}, random_calls({0: 20}, random.Random(1))
        )
        want = whole(one, direction, x)
    assert torch.equal(stream[0], want) or bool((stream[0] - want).abs().max() < 1e-6)


@DIRECTIONS
def test_whole_sequences_may_share_a_batch(codec: Mimi, direction: str) -> None:
    """How training runs: no state, lines of any length."""
    parts = [inputs(codec, direction, n) for n in (9, 9, 4)]
    run = codec.encode if direction == "encode" else codec.decode
    for chosen in (parts[:2], parts):
        counts = [
            len(x) // (codec.config.frame_size if direction == "encode" else 1) for x in chosen
        ]
        rows = RowBatch.build(range(len(chosen)), counts, [0] * len(chosen))
        together = run(torch.cat(chosen), None, rows)
        want = torch.cat([whole(codec, direction, x) for x in chosen])
        assert torch.equal(together, want) or bool((together - want).abs().max() < 1e-6)


@DIRECTIONS
def test_the_next_tenant_sees_nothing_of_the_last(codec: Mimi, direction: str) -> None:
    first, second = inputs(codec, direction, 30), inputs(codec, direction, 17)
    with torch.inference_mode():
        used = CodecStream(codec, direction, 2)
        used.feed({0: first}, [{0: 2}] * 15)
        for view in used.views.values():
            assert bool(view.data[..., :1].isfinite().any())
            view.data[view.data.isfinite()] = 1e30  # what the last one left, made loud
        used.arenas.reset(0)
        calls = random_calls({0: 17}, random.Random(1))
        again = used.feed({0: second}, calls)[0]
        fresh = CodecStream(codec, direction, 1).feed({0: second}, calls)[0]
    assert_bitwise_equal(again, fresh)


@DIRECTIONS
def test_a_paused_line_changes_nothing_and_is_silent(codec: Mimi, direction: str) -> None:
    x, y = inputs(codec, direction, 12), inputs(codec, direction, 8)
    with torch.inference_mode():
        want_x = CodecStream(codec, direction, 1).feed({0: x}, [{0: 3}] * 4)[0]
        want_y = CodecStream(codec, direction, 1).feed({0: y}, [{0: 4}] * 2)[0]
        stream = CodecStream(codec, direction, 3)
        unit, got_x, got_y = stream.rows_per_frame, [], []
        for i in range(4):
            pieces = {0: x[3 * i * unit : 3 * (i + 1) * unit]}
            runs = i % 2 == 1
            nobody_looks = torch.full_like(y[: 3 * unit], -1)
            other = y[4 * (i // 2) * unit :][: 4 * unit] if runs else nobody_looks
            out = stream.call({2: other} | pieces, paused=[] if runs else [2])
            got_x.append(out[0])
            if runs:
                got_y.append(out[2])
            else:
                assert int(out[2].count_nonzero()) == 0
        for name, view in stream.views.items():
            unused = view.data[:, 1] if isinstance(view, Twice) else view.data[1]
            assert bool(unused.isnan().all()), f"{name} of a slot nobody has was written"
    assert_bitwise_equal(torch.cat(got_y), want_y)
    assert_bitwise_equal(torch.cat(got_x), want_x)


@DIRECTIONS
def test_a_tick_that_fails_is_as_if_it_never_was(codec: Mimi, direction: str) -> None:
    x = inputs(codec, direction, 24)
    with torch.inference_mode():
        want = CodecStream(codec, direction, 1).feed({0: x}, [{0: 3}] * 8)[0]
        stream = CodecStream(codec, direction, 1)
        unit, got = stream.rows_per_frame, []
        for i in range(8):
            stream.call({0: inputs(codec, direction, 4)}, commit=False)
            got.append(stream.call({0: x[3 * i * unit : 3 * (i + 1) * unit]})[0])
    assert_bitwise_equal(torch.cat(got), want)


def test_a_tail_lost_between_ticks_is_caught(codec: Mimi) -> None:
    """The control: each kind of state matters to the comparison above."""
    x = inputs(codec, "decode", 12)
    calls = [{0: 3}] * 4
    with torch.inference_mode():
        want = CodecStream(codec, "decode", 1).feed({0: x}, calls)[0]
        names = list(CodecStream(codec, "decode", 1).views)
        for name in names:
            stream = CodecStream(codec, "decode", 1)
            parts = []
            for i in range(4):
                if i:
                    stream.views[name].data.zero_()
                parts.append(stream.call({0: x[3 * i : 3 * i + 3]})[0])
            assert not torch.equal(torch.cat(parts), want), f"{name} does not matter"


def test_random_weights_speak_at_the_level_of_speech() -> None:
    for config in (MimiConfig.tiny(), dataclasses.replace(MimiConfig.tiny(), num_codebooks=8)):
        codec = Mimi(config)
        for seed in range(3):
            codec.reset_parameters(torch.Generator().manual_seed(seed))
            codes = torch.randint(config.codebook_size, (20, config.num_codebooks))
            with torch.inference_mode():
                audio = codec.decode(codes)
                heard = codec.encode(audio)
            assert audio.shape == (20 * 1200,)
            assert 0.05 <= float(audio.square().mean().sqrt()) <= 0.2
            assert float((audio.abs() < 1).float().mean()) > 0.999
            assert all(len(heard[:, q].unique()) > 3 for q in range(config.num_codebooks))


def test_a_seed_fixes_the_weights_and_a_lone_decoder_gets_the_same() -> None:
    whole_codec, again = Mimi(SMALL), Mimi(SMALL)
    whole_codec.reset_parameters(torch.Generator().manual_seed(3))
    again.decoder.reset_parameters(torch.Generator().manual_seed(3))
    for name, parameter in whole_codec.decoder.named_parameters():
        assert torch.equal(parameter, again.decoder.get_parameter(name)), name


def test_every_parameter_learns() -> None:
    codec = build().requires_grad_(True)
    rows = RowBatch.build([0, 1], [6, 6], [0, 0])
    audio = 0.3 * torch.randn(12 * codec.config.frame_size)
    latents = codec.encoder.latents(audio, None, rows)
    codes = codec.encode(audio, None, rows)
    decoded = codec.decoder.codebooks(codes, rows)
    heard = codec.decoder.decode_latents(decoded + latents - latents.detach(), None, rows)
    (heard - audio).square().mean().backward()
    untouched = [
        name
        for name, parameter in codec.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.any())
    ]
    assert untouched == ["encoder.semantic", "encoder.acoustic"]  # only choose codes


def test_new_books_are_noticed(codec: Mimi) -> None:
    changed = build()
    audio = 0.3 * torch.randn(8 * SMALL.frame_size)
    before = changed.encode(audio)
    with torch.no_grad():
        changed.decoder.codebooks.tables.mul_(torch.linspace(0.1, 3, 40)[:, None])
    after = changed.encode(audio)
    assert not torch.equal(before, after)
    changed.encoder._norms = None
    assert torch.equal(changed.encode(audio), after)


def test_bad_input_says_what_is_wanted(codec: Mimi) -> None:
    with pytest.raises(ValueError, match=r"audio must be mono \[T \* 12\], whole frames, got \[13"):
        codec.encode(torch.zeros(13))
    with pytest.raises(ValueError, match=r"2 whole frames, got \[12\]"):
        codec.encode(torch.zeros(12), None, RowBatch.build([0], [2], [0]))
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.39, got 0\.\.40"):
        codec.decode(torch.tensor([[0, 0, 0, 40]]))
    with pytest.raises(ValueError, match="1 to 4 books, got 5"):
        codec.decode(torch.zeros(1, 5, dtype=torch.int64))


def test_sizes_that_do_not_fit_are_named() -> None:
    assert MimiConfig.released().frame_rate == 12.5
    assert MimiConfig.interaction().frame_rate == MimiConfig.tiny().frame_rate == 20
    for change, words in (
        ({"num_heads": 3}, "num_heads must divide dim"),
        ({"num_semantic": 8}, "num_codebooks must exceed num_semantic"),
        ({"compress": 3}, "compress must divide n_filters"),
        ({"ratios": (8, 0)}, "ratios must be positive"),
        ({"context": 0}, "context must be positive"),
    ):
        with pytest.raises(ValueError, match=words):
            MimiConfig(**change)  # type: ignore[arg-type]
