"""`microturn logits` and `microturn codec`, against the libraries whose files they read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from microturn.model.checkpoint import CheckpointError
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.release_config import read_release_config
from microturn.model.mimi import MimiConfig
from microturn.model.mimi.kyutai_sizes import kyutai_sizes
from microturn.model.mimi.names import SPELLINGS, kyutai_shapes
from microturn.runtime.cli.app import app
from oracles import inkling, mimi
from oracles.inkling import FEW, Released, released_sizes

TOKENS = 70
SMALL = dataclasses.replace(
    MimiConfig.released(),  # heads, context and rate as released: no file says them
    n_filters=8,
    ratios=(5, 4, 2),
    dim=32,
    num_layers=2,
    ff_dim=48,
    num_codebooks=12,
    codebook_size=40,
    codebook_dim=16,
)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def released() -> Released:
    torch.manual_seed(2)
    return Released(FEW)


@pytest.fixture(scope="module")
def folder(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inkling")
    released.save(path)
    return path


@pytest.fixture(scope="module")
def wanted(released: Released, folder: Path) -> np.ndarray[Any, Any]:
    """transformers' logits of the ids that stand beside its checkpoint."""
    ids = torch.randint(0, FEW.unpadded_vocab_size - 1, (TOKENS,))
    (folder / "ids.json").write_text(json.dumps(ids.tolist()))
    return released.answer(ids).logits.numpy()


@pytest.mark.oracle
@pytest.mark.parametrize("chunk", [None, 1, 7, 32, 500])
def test_logits_are_those_of_transformers_whole_and_in_chunks(
    folder: Path, wanted: np.ndarray[Any, Any], tmp_path: Path, chunk: int | None
) -> None:
    options = () if chunk is None else ("--chunk", chunk, "--dtype", "fp32")
    out = tmp_path / "logits.npy"
    result = invoke(
        *("logits", "--checkpoint", folder, "--ids", folder / "ids.json", "--out", out), *options
    )
    assert result.exit_code == 0, result.output
    got = np.load(out)
    assert got.shape == (TOKENS, FEW.unpadded_vocab_size) and got.dtype == np.float32
    assert np.abs(got - wanted).max() <= inkling.BAR
    assert f"[{TOKENS}, {FEW.unpadded_vocab_size}] fp32" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["logits.npy"]


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "least", "most"), [("bf16", 1e-4, 0.3), ("fp8", 1e-2, 1.0)])
def test_fewer_bits_move_the_logits_and_not_far(
    folder: Path,
    wanted: np.ndarray[Any, Any],
    tmp_path: Path,
    dtype: str,
    least: float,
    most: float,
) -> None:
    # Rounding may send a row to other experts, which moves its logits by a share of their size.
    out = tmp_path / "logits.npy"
    result = invoke(
        *("logits", "--checkpoint", folder, "--ids", folder / "ids.json"),
        *("--dtype", dtype, "--out", out),
    )
    assert result.exit_code == 0 and f"weights as {dtype}" in result.output, result.output
    off = np.sqrt(np.mean((np.load(out) - wanted) ** 2)) / wanted.std()
    assert least < off < most


@pytest.mark.oracle
def test_a_sharded_checkpoint_gives_the_same_logits(
    released: Released, folder: Path, wanted: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    released.whole.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    out = tmp_path / "logits.npy"
    result = invoke(
        *("logits", "--checkpoint", tmp_path / "shards"),
        *("--ids", folder / "ids.json", "--out", out),
    )
    assert result.exit_code == 0, result.output
    assert np.abs(np.load(out) - wanted).max() <= inkling.BAR


@pytest.mark.oracle
def test_a_config_in_the_released_words_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.23")
    sizes = released_sizes(FEW)
    sizes["dense_intermediate_size"] = sizes.pop("intermediate_size")
    sizes["intermediate_size"] = sizes.pop("moe_intermediate_size")
    sizes["sconv_kernel_size"] = sizes.pop("conv_kernel_size")
    sizes["dense_mlp_idx"] = sizes.pop("mlp_layer_types").count("dense")
    whole = transformers.InklingConfig(text_config=dict(sizes)).to_dict()
    audio = whole["audio_config"]

    def read(text: dict[str, Any], rows: int, chunk: int) -> TrunkConfig:
        document = {"model_type": "inkling_mm_model", "text_config": text, "audio_config": audio}
        (tmp_path / "config.json").write_text(json.dumps(document))
        return read_release_config(tmp_path, global_window=rows, max_rows_per_tick=chunk).trunk

    assert read(sizes, 300, 32) == read(whole["text_config"], 300, 32) == FEW
    every_sixth = {k: v for k, v in sizes.items() if k != "local_layer_ids"}
    every_sixth["num_hidden_layers"] = 13
    assert read(every_sixth, 1, 1).global_layers == (5, 11)


@pytest.mark.oracle
def test_what_does_not_fit_is_one_line_and_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "logits.npy"

    def refused(ids: str, checkpoint: Path = folder, **options: object) -> str:
        (tmp_path / "ids.json").write_text(ids)
        arguments = ["logits", "--checkpoint", checkpoint, "--ids", tmp_path / "ids.json"]
        result = invoke(*arguments, "--out", out, *(x for o in options.items() for x in o))
        assert result.exit_code == 2, result.output
        assert not out.exists() and not list(tmp_path.glob("*.part"))
        assert "Traceback" not in result.output
        return result.output

    assert "ids must be 0 to 95" in refused("[3, 96]")
    assert "ids must be 0 to 95" in refused("[-1]")
    for ids in ("[]", "[1.5]", "[true]", '{"a": 1}'):
        assert "JSON list of token ids" in refused(ids)
    assert "is not JSON" in refused("[1,")
    assert "has no config.json" in refused("[1]", tmp_path)
    assert "int4" in refused("[1]", **{"--dtype": "int4"})
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    assert "no model.safetensors" in refused("[1]", broken)
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    assert "truncated" in refused("[1]", broken)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.llm.norm.weight"]
    save_file(tensors, broken / "model.safetensors")
    assert "model.llm.norm.weight is missing" in refused("[1]", broken)
    (broken / "config.json").write_text("{}")
    assert "unknown architecture" in refused("[1]", broken)


@pytest.fixture(scope="module")
def theirs() -> Any:
    codec = mimi.moshi_codec(SMALL)
    mimi.bring_to_level(codec, SMALL)
    return codec


@pytest.fixture(scope="module")
def codec_file(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """moshi's tensors under the names of the released file."""
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        for spelling, as_released in SPELLINGS.items():
            name = name.replace(spelling, as_released)
        tensors[name] = tensor.contiguous()
    path = tmp_path_factory.mktemp("mimi") / "tokenizer-small.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def heard(codec_file: Path) -> tuple[Path, Tensor]:
    """A recording at the codec's rate that ends within a frame, and its samples."""
    samples = mimi.speech(31, SMALL)[: -SMALL.frame_size // 3]
    path = codec_file.parent / "heard.wav"
    soundfile.write(path, samples.numpy(), SMALL.sample_rate, subtype="FLOAT")
    return path, samples


@pytest.mark.oracle
@pytest.mark.parametrize("books", [None, 2, 12])
def test_codes_are_those_of_moshi(
    theirs: Any, codec_file: Path, heard: tuple[Path, Tensor], tmp_path: Path, books: int | None
) -> None:
    path, samples = heard
    out = tmp_path / "codes.npy"
    given = codec_file if books is None else codec_file.parent
    options = () if books is None else ("--codebooks", books)
    result = invoke("codec", "encode", path, "--checkpoint", given, "--out", out, *options)
    assert result.exit_code == 0, result.output
    got = np.load(out)
    with torch.no_grad():
        want = mimi.their_encode(theirs, samples).T.numpy()
    assert got.dtype == np.int64 and got.shape == (books or 8, 31)
    assert np.array_equal(got, want[: books or 8])


@pytest.mark.oracle
@pytest.mark.parametrize("books", [3, 12])
def test_audio_is_that_of_moshi(theirs: Any, codec_file: Path, tmp_path: Path, books: int) -> None:
    codes = mimi.codes_of(40, SMALL)[:, :books]
    np.save(tmp_path / "codes.npy", codes.T.numpy())
    out = tmp_path / "out.wav"
    result = invoke(
        "codec", "decode", tmp_path / "codes.npy", "--checkpoint", codec_file, "--out", out
    )
    assert result.exit_code == 0, result.output
    got, rate = soundfile.read(out, dtype="float32")
    with torch.no_grad():
        want = mimi.their_decode(theirs, codes).numpy()
    assert rate == SMALL.sample_rate and got.shape == want.shape
    assert np.abs(got - want).max() <= mimi.BAR


@pytest.mark.oracle
def test_a_recording_of_another_rate_is_resampled(codec_file: Path, tmp_path: Path) -> None:
    rate, seconds = 8_000, 0.02
    soundfile.write(tmp_path / "in.wav", np.zeros(int(rate * seconds)) + 0.1, rate)
    result = invoke(
        *("codec", "encode", tmp_path / "in.wav"),
        *("--checkpoint", codec_file, "--out", tmp_path / "codes"),
    )
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "codes").shape == (8, 24_000 * seconds / SMALL.frame_size)


@pytest.mark.oracle
def test_codec_mistakes_are_one_line_and_leave_no_file(
    codec_file: Path, heard: tuple[Path, Tensor], tmp_path: Path
) -> None:
    out, codes = tmp_path / "out", tmp_path / "codes.npy"

    def refused(*arguments: object) -> str:
        result = invoke("codec", *arguments, "--out", out)
        assert result.exit_code == 2, result.output
        assert not out.exists() and not list(tmp_path.glob("*.part"))
        assert "Traceback" not in result.output
        return " ".join(result.output.split())

    def refused_codes(array: np.ndarray[Any, Any]) -> str:
        np.save(codes, array)
        return refused("decode", codes, "--checkpoint", codec_file)

    for books in (0, 1, 13):
        options = ("--checkpoint", codec_file, "--codebooks", books)
        assert "num_codebooks must be 2 to 12" in refused("encode", heard[0], *options)
    assert "no such file" in refused("encode", tmp_path / "no.wav", "--checkpoint", codec_file)
    assert "safetensors" in refused("encode", heard[0], "--checkpoint", tmp_path)
    assert "integer codes [Q, F]" in refused_codes(np.zeros((4, 3)))
    assert "integer codes [Q, F]" in refused_codes(np.zeros(4, np.int64))
    assert "holds no codes" in refused_codes(np.zeros((4, 0), np.int64))
    assert "codes must lie in 0..39, got 0..40" in refused_codes(np.array([[0, 1], [40, 2]]))
    assert "num_codebooks must be 2 to 12" in refused_codes(np.zeros((13, 2), np.int64))
    codes.write_text("no numbers")
    assert "not an .npy file" in refused("decode", codes, "--checkpoint", codec_file)
    assert "give codes as .npy" in refused("decode", tmp_path / "n", "--checkpoint", codec_file)
    other = tmp_path / "other.safetensors"
    save_file({"encoder.layers.0.conv.weight": torch.zeros(2)}, other)
    assert "holds no codebooks" in refused("encode", heard[0], "--checkpoint", other)
    save_file({"a": torch.zeros(2)}, other)
    assert "kyutai's layout" in refused("encode", heard[0], "--checkpoint", other)


@pytest.mark.parametrize("config", [MimiConfig.released(), SMALL])
def test_the_sizes_of_a_codec_are_read_from_its_tensors(config: MimiConfig) -> None:
    shapes = kyutai_shapes(config)
    assert kyutai_sizes(shapes, "x") == config
    with pytest.raises(CheckpointError, match="x has no downsample"):
        kyutai_sizes({k: v for k, v in shapes.items() if "downsample" not in k}, "x")
