"""The codec's files in the layout of transformers 5.23: its own model is the judge."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.model.checkpoint import CheckpointError
from microturn.model.mimi import Mimi, MimiConfig, load_mimi, save_mimi
from microturn.model.mimi.hugging_face import halved, hugging_face_shapes, interleaved

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


@pytest.fixture(scope="module")
def ours() -> Mimi:
    codec = Mimi(SMALL).requires_grad_(False)
    codec.reset_parameters(torch.Generator().manual_seed(3))
    for side in (codec.encoder, codec.decoder):
        for layer in side.transformer.layers:
            # Layer scales of 0.01 would hide a wrong attention.
            layer.scale1.fill_(0.7)
            layer.scale2.fill_(0.5)
    return codec


@pytest.fixture(scope="module")
def folder(ours: Mimi, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hf")
    save_mimi(ours, made, "hugging_face")
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", minversion="5.23")
    model, report = transformers.MimiModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def speech(frames: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(frames * SMALL.frame_size, generator=generator)


@pytest.mark.oracle
def test_saved_here_it_computes_the_same_in_transformers(ours: Mimi, theirs: Any) -> None:
    audio = speech()
    codes = ours.encode(audio)
    assert len(codes.unique()) > SMALL.codebook_size // 4
    with torch.no_grad():
        heard = theirs.encode(audio[None, None]).audio_codes[0].T
        said = theirs.decode(codes.T[None]).audio_values[0, 0]
    assert torch.equal(codes, heard)
    got = ours.decode(codes)
    assert float(said.square().mean().sqrt()) > 0.05
    assert float((got - said).abs().max()) <= 1e-5


@pytest.mark.oracle
def test_saved_by_transformers_it_loads_here(theirs: Any, tmp_path: Path) -> None:
    """Fresh random weights of their own; whole utterances on both sides."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "scale" in name or "norm" in name:
                parameter.add_(0.2 * torch.rand_like(parameter))
            else:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
        for name, buffer in theirs.named_buffers():
            if name.endswith("cluster_usage"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    for module in theirs.modules():
        if hasattr(module, "_embed"):
            module._embed = None
    theirs.save_pretrained(tmp_path)
    read = load_mimi(tmp_path)
    assert read.config == SMALL
    audio = speech()
    codes = read.encode(audio)
    with torch.no_grad():
        assert torch.equal(codes, theirs.encode(audio[None, None]).audio_codes[0].T)
        said = theirs.decode(codes.T[None]).audio_values[0, 0]
    assert float((read.decode(codes) - said).abs().max()) <= 1e-5


@pytest.mark.oracle
def test_rows_left_in_their_order_are_caught(ours: Mimi, theirs: Any, folder: Path) -> None:
    """What reading q and k as they lie gives: the right shapes and other codes."""
    read = load_mimi(folder)
    audio = speech()
    assert torch.equal(read.encode(audio), ours.encode(audio))
    for layer in read.encoder.transformer.layers:
        q, k, v = layer.in_proj.chunk(3)
        heads = SMALL.num_heads
        layer.in_proj.copy_(torch.cat([halved(q, heads), halved(k, heads), v]))
    assert not torch.equal(read.encode(audio), ours.encode(audio))


def test_both_layouts_give_the_same_parameters(ours: Mimi, folder: Path, tmp_path: Path) -> None:
    save_mimi(ours, tmp_path / "kyutai.safetensors")
    for read in (load_mimi(folder), load_mimi(tmp_path / "kyutai.safetensors", config=SMALL)):
        for name, parameter in ours.named_parameters():
            assert torch.equal(parameter, read.get_parameter(name)), name


def test_rows_of_a_head_interleave_its_halves() -> None:
    rows = torch.arange(8.0)[:, None]
    assert interleaved(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(halved(interleaved(rows, 2), 2), rows)


def test_a_folder_runs_on_fewer_books_than_it_has(ours: Mimi, folder: Path) -> None:
    few = load_mimi(folder, num_codebooks=3)
    assert torch.equal(few.decoder.codebooks.tables, ours.decoder.codebooks.tables[:3])
    for wrong in (1, 6):
        with pytest.raises(ValueError, match=rf"num_codebooks must be 2 to 5.*got {wrong}"):
            load_mimi(folder, num_codebooks=wrong)


def test_the_released_sizes_of_both_layouts_agree() -> None:
    """Values by layout: the same, since in_proj is cut in three."""
    config = dataclasses.replace(MimiConfig.released(), num_codebooks=32)
    shapes = hugging_face_shapes(config)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 96_151_393
    assert len(shapes) == 318 + 2 * 16
    assert shapes["decoder_transformer.layers.7.self_attn.k_proj.weight"] == (512, 512)
    assert shapes["upsample.conv.weight"] == (512, 1, 4)


def test_kyutais_folder_names_its_codec(ours: Mimi, tmp_path: Path) -> None:
    save_mimi(ours, tmp_path / "tokenizer-abc.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"the language model")
    assert load_mimi(tmp_path, config=SMALL).config == SMALL
    save_mimi(ours, tmp_path / "tokenizer-def.safetensors")
    with pytest.raises(CheckpointError, match=r"tokenizer-abc.*tokenizer-def.*name the file"):
        load_mimi(tmp_path, config=SMALL)
    (tmp_path / "config.json").write_text(json.dumps({"mimi_name": "tokenizer-def.safetensors"}))
    assert load_mimi(tmp_path, config=SMALL).config == SMALL
    # The file shows all sizes but heads, context and rates, which are the released ones.
    shown = dataclasses.replace(SMALL, num_heads=8, context=250, num_codebooks=4)
    assert load_mimi(tmp_path, num_codebooks=4).config == shown


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_conv_shortcut", True), ("head_dim", 8), ("codebook_dim", "16"), ("sliding_window", 0)],
)
def test_a_config_this_codec_does_not_compute_is_refused(
    folder: Path, tmp_path: Path, field: str, value: object
) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {field: value}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_mimi(tmp_path)
