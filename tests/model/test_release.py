"""Released folders: transformers 5.23 reads ours, we read theirs, and both compute the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.model.checkpoint import Checkpoint, CheckpointError
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.names import trunk_tensors
from microturn.model.inkling.release import Inkling, load_release, save_release
from microturn.model.inkling.release_config import ReleaseConfig, read_release_config
from microturn.model.interaction import NoAudioHead, load, load_family, preset, save

BAR = 1e-4
SMALL: dict[str, Any] = {
    "model_max_length": 4096,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "vocab_size": 96,
    "unpadded_vocab_size": 90,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 1,
    "swa_head_dim": 32,
    "sliding_window_size": 8,
    "local_layer_ids": [0, 2],
    "d_rel": 16,
    "rel_extent": 12,
    "log_scaling_n_floor": 16,
    "log_scaling_alpha": 0.1,
    "rms_norm_eps": 1e-6,
    "sconv_kernel_size": 4,
    "dense_mlp_idx": 1,
    "dense_intermediate_size": 96,
    "intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "route_scale": 8.0,
    "logits_mup_width_multiplier": 4.0,
}
"""text_config in the spelling of the release."""

RELEASED: dict[str, Any] = SMALL | {
    "model_max_length": 1_048_576,
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "num_hidden_layers": 42,
    "vocab_size": 201_024,
    "unpadded_vocab_size": 200_058,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "swa_num_attention_heads": 32,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 128,
    "sliding_window_size": 512,
    "local_layer_ids": [i for i in range(42) if i % 6 != 5],
    "rel_extent": 1024,
    "log_scaling_n_floor": 128_000,
    "dense_mlp_idx": 2,
    "dense_intermediate_size": 16_384,
    "intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "logits_mup_width_multiplier": 16.0,
    "use_sconv": True,
    "gate_activation": "sigmoid",
    "final_logit_softcapping": None,
}


def header(text: dict[str, Any] = SMALL, **top: Any) -> dict[str, Any]:
    return {
        "architectures": ["InklingForConditionalGeneration"],
        "model_type": "inkling_mm_model",
        "text_config": text,
        "audio_config": {"decoder_dmodel": 64, "n_mel_bins": 80, "mel_vocab_size": 16},
        "vision_config": {"patch_size": 4, "n_layers": 2},
        **top,
    }


def put(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def logits(model: Inkling, ids: Tensor) -> Tensor:
    trunk = model.trunk
    return trunk.logits(trunk(trunk.embed(ids), None, RowBatch.build([0], [len(ids)], [0])))


@torch.no_grad()
def their_logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids[None], use_cache=False).logits[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Random weights of their making; every term large enough to be missed."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    torch.manual_seed(2)
    config = transformers.InklingConfig(**header())
    model = transformers.InklingForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 1:
                tensor.normal_(0.0 if "correction_bias" in name else 1.0, 0.3)
            elif tensor.is_floating_point():
                small = "sconv" in name or "rel_logits" in name
                tensor.normal_(0, 0.3 if small else tensor.shape[-1] ** -0.5)
        model.lm_head.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def saved(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 90, (80,), generator=torch.Generator().manual_seed(0))


@pytest.mark.oracle
def test_saved_by_transformers_it_loads_here(theirs: Any, saved: Path, ids: Tensor) -> None:
    ours = load(checkpoint=saved)
    assert isinstance(ours, Inkling) and ours.config.trunk.num_experts == 8
    want = their_logits(theirs, ids)
    assert float(want.std()) > 0.5
    assert float((logits(ours, ids) - want).abs().max()) <= BAR
    bins = torch.randint(0, 16, (7, 80))
    with torch.no_grad():
        heard = theirs.model.audio_tower(bins[None]).last_hidden_state[0]
        assert float((ours.audio(bins) - heard).abs().max()) <= 1e-5


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_saved_here_it_loads_in_transformers(
    theirs: Any, saved: Path, ids: Tensor, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Vision weights, which we have no place for, travel along."""
    transformers = pytest.importorskip("transformers")
    save_release(load_release(saved), tmp_path, dtype=dtype, shard_bytes=150_000)
    files = Checkpoint(tmp_path)
    kinds = {info.code for name, info in files.tensors.items() if "visual" not in name}
    assert kinds == ({"F32"} if dtype == torch.float32 else {"BF16", "F32"})
    assert files.tensors["model.llm.layers.2.mlp.gate.bias"].code == "F32"
    assert files.tensors.keys() == Checkpoint(saved).tensors.keys()
    again, report = transformers.InklingForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    got = logits(load_release(tmp_path), ids)
    assert float((got - their_logits(again, ids)).abs().max()) <= BAR
    if dtype == torch.float32:
        assert float((got - their_logits(theirs, ids)).abs().max()) <= BAR
    for (name, a), (_, b) in zip(
        again.model.vision_tower.state_dict().items(),
        theirs.model.vision_tower.state_dict().items(),
        strict=True,
    ):
        assert torch.equal(a, b), name


@pytest.mark.oracle
def test_a_model_that_never_was_a_file_is_written_whole(
    saved: Path, ids: Tensor, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = load_release(saved)
    fresh = dataclasses.replace(model, config=ReleaseConfig(model.config.trunk), folder=None)
    save_release(fresh, tmp_path, dtype=torch.float32)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    text = transformers.InklingForConditionalGeneration.from_pretrained(tmp_path, config=config)
    assert float((logits(model, ids) - their_logits(text, ids)).abs().max()) <= BAR
    assert float((logits(load_release(tmp_path), ids) - logits(model, ids)).abs().max()) == 0


@pytest.mark.oracle
def test_gate_and_up_read_as_halves_are_caught(theirs: Any, saved: Path, ids: Tensor) -> None:
    model = load_release(saved)
    w13 = model.trunk.get_parameter("layers.2.mlp.w13")
    with torch.no_grad():
        w13.copy_(torch.cat([w13[:, 0::2], w13[:, 1::2]], 1))
    assert float((logits(model, ids) - their_logits(theirs, ids)).abs().max()) > 10 * BAR


@pytest.mark.oracle
def test_storage_in_fewer_bits_moves_the_logits_a_little(saved: Path, ids: Tensor) -> None:
    want = logits(load_release(saved), ids)
    errors = {
        dtype: float((logits(load_release(saved, dtype=dtype), ids) - want).norm() / want.norm())
        for dtype in ("bf16", "fp8")
    }
    assert 1e-4 < errors["bf16"] < 0.1 < errors["fp8"] * 10
    fp8 = load_release(saved, dtype="fp8").trunk
    assert torch.equal(fp8.layers[2].mlp.bias, load_release(saved).trunk.layers[2].mlp.bias)
    for name, tensor in fp8.named_parameters():
        if "global_scale" not in name:
            assert torch.equal(tensor, tensor.bfloat16().float()), name
    with pytest.raises(ValueError, match="fp32, bf16 or fp8, got 'int4'"):
        load(checkpoint=saved, dtype="int4")


def test_the_released_config_gives_the_published_sizes(tmp_path: Path) -> None:
    config = read_release_config(put(tmp_path, header(RELEASED)))
    assert config.trunk == dataclasses.replace(
        preset("interaction-small").trunk, unpadded_vocab_size=200_058
    )
    with torch.device("meta"):
        parts = [part.state_dict().values() for _, part, _ in Inkling.empty(config).parts()]
    assert [sum(t.numel() for t in values) for values in parts] == [263_655_199_274, 5_246_976]
    scalars = [e for e in trunk_tensors(config.trunk) if e.kind == "scalar"]
    assert sum(torch.Size(e.shape).numel() for e in scalars) == 10_280


def test_a_config_of_ours_reads_back(tmp_path: Path) -> None:
    trunk = read_release_config(put(tmp_path, header())).trunk
    again = read_release_config(put(tmp_path, ReleaseConfig(trunk).to_dict())).trunk
    assert again == trunk
    assert isinstance(again, TrunkConfig) and again.global_layers == (1, 3)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "Inkling-2": (lambda c: c.update(model_type="inkling2"), "is Inkling-2, another architecture"),
    "text only": (lambda c: c.update(model_type="inkling_text"), "unknown architecture"),
    "NVFP4": (lambda c: c.update(quantization_config={}), "weights are quantised"),
    "no text": (lambda c: c.pop("text_config"), "has no text_config"),
    "audio of no size": (lambda c: c["audio_config"].pop("n_mel_bins"), "n_mel_bins must be"),
    "a field is missing": (lambda c: c["text_config"].pop("d_rel"), "text_config lacks d_rel"),
    "either of two": (
        lambda c: c["text_config"].pop("sconv_kernel_size"),
        "lacks sconv_kernel_size or conv_kernel_size",
    ),
    "text for a number": (lambda c: c["text_config"].update(d_rel="16"), "d_rel must be a whole"),
    "softcapping": (
        lambda c: c["text_config"].update(final_logit_softcapping=30.0),
        "final_logit_softcapping is 30.0",
    ),
    "odd layers": (
        lambda c: c["text_config"].update(local_layer_ids=[9]),
        "local_layer_ids must list",
    ),
    "sparse, then dense": (
        lambda c: c["text_config"].update(mlp_layer_types=["sparse", "dense", "dense", "dense"]),
        "mlp_layer_types must be dense layers, then sparse",
    ),
    "sizes that do not fit": (
        lambda c: c["text_config"].update(num_key_value_heads=3),
        "num_heads must be a multiple of num_kv_heads",
    ),
    "no width": (lambda c: c["text_config"].pop("intermediate_size"), "intermediate_size must be"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_config_that_cannot_be_computed_is_refused(tmp_path: Path, change: str) -> None:
    config = json.loads(json.dumps(header()))
    edit, words = CHANGES[change]
    edit(config)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(checkpoint=put(tmp_path, config))
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '"inkling"'])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not"):
        load(checkpoint=tmp_path)


def test_another_model_lists_what_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model_type 'llama' cannot be read; this version"):
        load(checkpoint=put(tmp_path, {"model_type": "llama"}))


def test_the_interaction_mode_says_what_released_weights_cannot_do(tmp_path: Path) -> None:
    """Before any weights are read: there are none here."""
    with pytest.raises(NoAudioHead, match=r"no audio head.*--mode turn"):
        load_family(checkpoint=put(tmp_path, header()))


def test_a_tokenizer_is_picked_up_where_there_is_one(tmp_path: Path) -> None:
    model = Inkling.empty(
        ReleaseConfig(read_release_config(put(tmp_path, header())).trunk, audio_mels=4)
    )
    with torch.no_grad():
        for _, part, _ in model.parts():
            for tensor in part.state_dict().values():
                tensor.fill_(0.5)
    folder = tmp_path / "model"
    save_release(model, folder)
    assert load_release(folder).tokenizer is None
    tokenizer = load_family("interaction-tiny").tokenizer
    assert tokenizer is not None
    tokenizer.save(folder / "tokenizer.json")
    read = load_release(folder)
    assert read.tokenizer is not None
    assert read.tokenizer.encode("hello") == tokenizer.encode("hello")
    save_release(read, tmp_path / "again")
    assert load_release(tmp_path / "again").tokenizer is not None
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a readable tokenizer"):
        load_release(folder)


def test_our_own_files_are_checked_as_well(tmp_path: Path) -> None:
    family = load_family("interaction-tiny", seed=1, trained=False)
    save(family, tmp_path)
    exact = family.model.trunk.layers[1].mlp.w13.detach().half().float()
    assert torch.equal(load_family(checkpoint=tmp_path).model.trunk.layers[1].mlp.w13, exact)
    eight = load_family(checkpoint=tmp_path, dtype="fp8").model
    error = float((eight.trunk.layers[1].mlp.w13.detach() - exact).norm() / exact.norm())
    assert 0.02 < error < 0.03
    codec = family.model.codec.first.weight.half().float()
    assert torch.equal(eight.codec.first.weight, codec)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        load(checkpoint=tmp_path)
    file.write_bytes(whole)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["model"]["trunk"]["num_layers"] = 7
    put(tmp_path, raw)
    with pytest.raises(CheckpointError, match=r"trunk\.layers\.6\.attn\.qkvr is missing, wanted"):
        load(checkpoint=tmp_path)
    raw["format"] = 2
    with pytest.raises(CheckpointError, match="format 2 cannot be read"):
        load(checkpoint=put(tmp_path, raw))
