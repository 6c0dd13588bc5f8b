"""The codec against moshi 0.2.13, random weights, fp32: codes equal, audio within 1e-5."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microturn.model.checkpoint import CheckpointError
from microturn.model.mimi import (
    Mimi,
    MimiConfig,
    MimiDecoder,
    load_kyutai,
    load_mimi,
    save_mimi,
)
from microturn.model.mimi.names import SPELLINGS, kyutai_shapes
from oracles.mimi import BAR, codes_of, moshi_codec, pair, speech, their_decode, their_encode
from oracles.streams import CodecStream

SMALL = MimiConfig(
    n_filters=8,
    ratios=(4, 3),
    dim=32,
    num_layers=2,
    num_heads=2,
    ff_dim=64,
    context=20,
    num_codebooks=5,
    codebook_size=64,
    codebook_dim=16,
)
"""Same topology, 24 samples a frame, 10 frames of context."""

RATIOS = {
    "released": dataclasses.replace(SMALL, ratios=MimiConfig.released().ratios, context=250),
    "20 Hz": dataclasses.replace(SMALL, ratios=MimiConfig.interaction().ratios, compress=1),
}


@pytest.fixture(scope="module")
def small() -> tuple[Mimi, Any]:
    return pair(SMALL)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_same_audio(got: Tensor, want: Tensor) -> None:
    assert 0.1 < float(want.square().mean().sqrt()) < 1, "the bound below means nothing"
    worst = float((got - want).abs().max())
    assert worst <= BAR, f"audio differs by {worst:.2g}"


@pytest.mark.oracle
@pytest.mark.parametrize("name", RATIOS)
def test_whole_utterances_of_each_topology(name: str) -> None:
    config = RATIOS[name]
    ours, theirs = pair(config)
    audio, codes = speech(14, config), codes_of(14, config)
    got = ours.encode(audio)
    assert len(got.unique()) > config.codebook_size // 4, "the books are degenerate"
    assert torch.equal(got, their_encode(theirs, audio))
    assert_same_audio(ours.decode(codes), their_decode(theirs, codes))


@pytest.mark.oracle
def test_whole_utterances_of_many_contexts(small: tuple[Mimi, Any]) -> None:
    ours, theirs = small
    audio, codes = speech(130, SMALL), codes_of(130, SMALL)
    assert torch.equal(ours.encode(audio), their_encode(theirs, audio))
    assert_same_audio(ours.decode(codes), their_decode(theirs, codes))
    fewer = codes[:, :3]
    assert_same_audio(ours.decode(fewer), their_decode(theirs, fewer))


@pytest.mark.oracle
def test_frame_by_frame_out_of_step(small: tuple[Mimi, Any]) -> None:
    """Three streams that begin at different times and overrun the context; theirs whole."""
    ours, theirs = small
    begins, lengths = {2: 0, 0: 5, 1: 9}, {2: 41, 0: 30, 1: 37}
    calls = [{s: 1 for s in begins if begins[s] <= t < begins[s] + lengths[s]} for t in range(46)]
    audio = {s: speech(n, SMALL, seed=s) for s, n in lengths.items()}
    codes = {s: codes_of(n, SMALL, seed=s) for s, n in lengths.items()}
    got_codes = CodecStream(ours, "encode", 3).feed(audio, calls)
    got_audio = CodecStream(ours, "decode", 3).feed(codes, calls)
    for slot in begins:
        assert torch.equal(got_codes[slot], their_encode(theirs, audio[slot]))
        assert_same_audio(got_audio[slot], their_decode(theirs, codes[slot]))


@pytest.mark.oracle
def test_their_streaming_within_its_first_context(small: tuple[Mimi, Any]) -> None:
    """Past it, moshi's own ring shows a frame's first latent one key too few."""
    ours, theirs = small
    frames = SMALL.context // SMALL.resample_stride
    audio, codes = speech(frames, SMALL), codes_of(frames, SMALL)
    calls = [{0: 1}] * frames
    with theirs.streaming(1):
        heard = torch.cat([their_encode(theirs, x) for x in audio.split(SMALL.frame_size)])
        said = torch.cat([their_decode(theirs, x) for x in codes.split(1)])
    assert torch.equal(CodecStream(ours, "encode", 1).feed({0: audio}, calls)[0], heard)
    assert_same_audio(CodecStream(ours, "decode", 1).feed({0: codes}, calls)[0], said)


@pytest.mark.oracle
def test_planted_faults_are_caught() -> None:
    ours, theirs = pair(SMALL)
    audio, codes = speech(40, SMALL), codes_of(40, SMALL)
    want_codes, want_audio = their_encode(theirs, audio), their_decode(theirs, codes)

    ours.encoder.downsample.pad = "zero"
    assert not torch.equal(ours.encode(audio), want_codes), "replicate pad dropped"
    ours.encoder.downsample.pad = "replicate"
    assert torch.equal(ours.encode(audio), want_codes)

    wider = dataclasses.replace(SMALL, context=SMALL.context + 1)
    ours.decoder.transformer.config = wider
    with pytest.raises(AssertionError, match="audio differs"):
        assert_same_audio(ours.decode(codes), want_audio)
    ours.decoder.transformer.config = SMALL
    assert_same_audio(ours.decode(codes), want_audio)

    bias = ours.decoder.up[0].bias
    assert isinstance(bias, Tensor)
    bias.mul_(2)  # what a bias kept in the overlap does to the samples where frames meet
    with pytest.raises(AssertionError, match="audio differs"):
        assert_same_audio(ours.decode(codes), want_audio)


def test_the_released_topology_counts_as_spec_says() -> None:
    """318 tensors and 96,151,393 values in the file; usage and flags of the books are not ours."""
    config = dataclasses.replace(MimiConfig.released(), num_codebooks=32)
    shapes = kyutai_shapes(config)
    assert len(shapes) == 318
    assert sum(prod(shape) for shape in shapes.values()) == 96_151_393
    with torch.device("meta"):
        codec = Mimi(config)
    sizes = {
        part: sum(p.numel() for n, p in codec.named_parameters() if n.startswith(part))
        for part in ("encoder.transformer", "decoder.transformer", "decoder.codebooks.tables")
    }
    assert sizes == {
        "encoder.transformer": 25_190_400,
        "decoder.transformer": 25_190_400,
        "decoder.codebooks.tables": 16_777_216,
    }
    assert sum(p.numel() for p in codec.parameters()) == 96_151_393 - 32 * (2048 + 1)
    with torch.device("meta"):
        lone = MimiDecoder(config)
    assert {f"decoder.{n}" for n, _ in lone.named_parameters()} == {
        n for n, _ in codec.named_parameters() if n.startswith("decoder.")
    }


@pytest.mark.oracle
def test_the_names_are_those_of_moshi(small: tuple[Mimi, Any]) -> None:
    _, theirs = small
    names = {}
    for name, tensor in theirs.state_dict().items():
        for spelling, released in SPELLINGS.items():
            name = name.replace(spelling, released)
        names[name] = tuple(tensor.shape)
    assert names == kyutai_shapes(SMALL)


def random_file(config: MimiConfig) -> dict[str, Tensor]:
    return {name: torch.rand(shape) + 0.5 for name, shape in kyutai_shapes(config).items()}


def test_both_spellings_and_a_lone_decoder_load_the_same() -> None:
    released = random_file(SMALL)
    newer = dict(released)
    for spelling, name in SPELLINGS.items():
        for key in [key for key in released if key.endswith(name)]:
            newer[key.replace(name, spelling)] = newer.pop(key)
    assert newer.keys() != released.keys()
    one, other, lone = Mimi(SMALL), Mimi(SMALL), MimiDecoder(SMALL)
    load_kyutai(one, released)
    load_kyutai(other, newer)
    load_kyutai(lone, released)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name
    for name, parameter in lone.named_parameters():
        assert torch.equal(parameter, one.decoder.get_parameter(name)), name
    book = "quantizer.rvq_rest.vq.layers.1._codebook"
    usage, total = released[f"{book}.cluster_usage"], released[f"{book}.embedding_sum"]
    assert torch.equal(one.decoder.codebooks.tables[2], total / usage[:, None])


def test_a_codec_may_run_on_fewer_books_than_its_file_has() -> None:
    tensors = random_file(SMALL)
    fewer = MimiDecoder(dataclasses.replace(SMALL, num_codebooks=3))
    load_kyutai(fewer, tensors)
    full = MimiDecoder(SMALL)
    load_kyutai(full, tensors)
    assert torch.equal(fewer.codebooks.tables, full.codebooks.tables[:3])


def test_tensors_that_do_not_fit_are_named_with_both_shapes() -> None:
    tensors = random_file(SMALL)
    tensors["decoder.model.14.conv.conv.weight"] = torch.zeros(1, 2, 3)
    tensors["upsample.convtr.convtr.convtr.weight"] = torch.zeros(32, 32, 4)
    del tensors["encoder.model.0.conv.conv.bias"]
    codec = Mimi(SMALL)
    codec.reset_parameters(torch.Generator().manual_seed(0))
    before = codec.decoder.first.weight.clone()
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        load_kyutai(codec, tensors)
    text = str(caught.value)
    assert "encoder.model.0.conv.conv.bias is missing, wanted [8]" in text
    assert "upsample.convtr.convtr.convtr.weight is [32, 32, 4], wanted [32, 1, 4]" in text
    assert "decoder.model.14.conv.conv.weight [1, 2, 3] is not part of this model" in text
    assert text.count(";") == 2
    assert torch.equal(codec.decoder.first.weight, before)


@pytest.mark.oracle
def test_a_file_of_either_side_loads_on_the_other(small: tuple[Mimi, Any], tmp_path: Path) -> None:
    """moshi writes the newer spelling of the attention weights and reads the released one."""
    ours, theirs = small
    file = tmp_path / "moshi.safetensors"
    save_file(theirs.state_dict(), file)
    assert any(".in_projs." in name for name in theirs.state_dict())
    read = load_mimi(file, config=SMALL)
    audio, codes = speech(12, SMALL), codes_of(12, SMALL)
    assert torch.equal(read.encode(audio), their_encode(theirs, audio))

    save_mimi(ours, tmp_path / "ours.safetensors")
    written = load_file(tmp_path / "ours.safetensors")
    assert any(name.endswith("in_proj_weight") for name in written)
    other = moshi_codec(SMALL, seed=1)
    other.load_state_dict(written)
    assert torch.equal(their_encode(other, audio), ours.encode(audio))
    assert_same_audio(ours.decode(codes), their_decode(other, codes))


def test_books_without_rows_are_refused() -> None:
    tensors = random_file(SMALL)
    tensors["quantizer.rvq_first.vq.layers.0._codebook._initialized"].zero_()
    with pytest.raises(ValueError, match=r"hold no rows yet .*rvq_first.vq.layers.0"):
        load_kyutai(Mimi(SMALL), tensors)
