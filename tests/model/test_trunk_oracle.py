"""The trunk against transformers' InklingForCausalLM, through the released tensor names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import microturn.model.inkling.attention as attention_module
import microturn.model.inkling.layer as layer_module
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv import short_conv
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.names import load_released, load_released_audio
from microturn.model.inkling.trunk import AudioTower, Trunk
from microturn.runtime.arenas import Arenas

pytestmark = pytest.mark.oracle

BAR, DROPPED = 1e-4, 1e-3
TOKENS = 300
"""More than a ring holds here, so that rings and pages wrap."""

FEW = TrunkConfig(
    hidden_size=64,
    num_layers=4,
    global_layers=(1, 3),
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    local_num_heads=4,
    local_num_kv_heads=4,
    local_head_dim=16,
    sliding_window=8,
    global_window=TOKENS,
    d_rel=16,
    rel_extent=12,
    log_floor=16,
    log_alpha=0.1,
    num_dense_layers=1,
    dense_width=96,
    num_experts=8,
    top_k=3,
    num_shared_experts=2,
    expert_width=32,
    route_scale=8.0,
    vocab_size=96,
    unpadded_vocab_size=90,
    mup_multiplier=4.0,
    eps=1e-6,
    conv_kernel=4,
    max_rows_per_tick=32,
)
WIDE = dataclasses.replace(
    FEW,
    hidden_size=96,
    num_layers=5,
    global_layers=(0, 4),
    num_heads=6,
    head_dim=32,
    local_num_kv_heads=1,
    sliding_window=20,
    rel_extent=150,
    log_floor=40,
    log_alpha=0.3,
    num_dense_layers=2,
    num_experts=12,
    top_k=2,
    num_shared_experts=1,
)


def hugging_face_sizes(c: TrunkConfig) -> dict[str, Any]:
    layers = range(c.num_layers)
    return {
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_layers,
        "local_layer_ids": [i for i in layers if i not in c.global_layers],
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "swa_num_attention_heads": c.local_num_heads,
        "swa_num_key_value_heads": c.local_num_kv_heads,
        "swa_head_dim": c.local_head_dim,
        "sliding_window_size": c.sliding_window,
        "d_rel": c.d_rel,
        "rel_extent": c.rel_extent,
        "log_scaling_n_floor": c.log_floor,
        "log_scaling_alpha": c.log_alpha,
        "mlp_layer_types": ["dense" if i < c.num_dense_layers else "sparse" for i in layers],
        "intermediate_size": c.dense_width,
        "moe_intermediate_size": c.expert_width,
        "n_routed_experts": c.num_experts,
        "num_experts_per_tok": c.top_k,
        "n_shared_experts": c.num_shared_experts,
        "route_scale": c.route_scale,
        "vocab_size": c.vocab_size,
        "unpadded_vocab_size": c.unpadded_vocab_size,
        "logits_mup_width_multiplier": c.mup_multiplier,
        "rms_norm_eps": c.eps,
        "conv_kernel_size": c.conv_kernel,
        "max_position_embeddings": 4 * TOKENS,
    }


@dataclasses.dataclass(frozen=True)
class Oracle:
    """What transformers made of random weights, and the file it saved."""

    config: TrunkConfig
    tensors: dict[str, Tensor]
    ids: Tensor
    logits: Tensor
    bins: Tensor
    audio: Tensor

    def trunk(self, config: TrunkConfig | None = None) -> Trunk:
        trunk = Trunk(config or self.config)
        load_released(trunk, self.tensors)
        return trunk.eval()

    def error(self, logits: Tensor) -> float:
        assert logits.shape == self.logits.shape
        return float((logits - self.logits).abs().max())


def randomize(model: torch.nn.Module) -> None:
    """Every term large enough to be missed: gains far from 1, biases and taps far from 0."""
    spread = {"global_scale": (1.0, 0.1), "sconv": (0.0, 0.3), "rel_logits_proj": (0.0, 0.3)}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        default = (1.0, 0.3) if tensor.dim() == 1 else (0.0, tensor.shape[-1] ** -0.5)
        mean, std = next((v for k, v in spread.items() if k in name), default)
        if "correction_bias" in name:
            mean = 0.0
        tensor.normal_(mean, std)


@pytest.fixture(scope="module", params=[FEW, WIDE], ids=["few", "wide"])
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    transformers = pytest.importorskip("transformers", minversion="5.23")
    from safetensors.torch import load_file

    config: TrunkConfig = request.param
    torch.manual_seed(11)
    whole = transformers.InklingForConditionalGeneration(
        transformers.InklingConfig(
            text_config=hugging_face_sizes(config),
            audio_config={"n_mel_bins": 80, "mel_vocab_size": 16},
            vision_config={"patch_size": 4, "num_hidden_layers": 2},
        )
    ).eval()
    with torch.no_grad():
        randomize(whole)
        whole.lm_head.weight.normal_(0, config.mup_multiplier * config.hidden_size**-0.5)
    folder: Path = tmp_path_factory.mktemp("released")
    whole.save_pretrained(folder)
    text = transformers.InklingForCausalLM(whole.config.text_config).eval()
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    ids = torch.randint(0, config.unpadded_vocab_size, (TOKENS,))
    bins = torch.randint(0, 16, (7, 80))
    with torch.no_grad():
        logits = text(ids[None], use_cache=False).logits[0]
        audio = whole.model.audio_tower(bins[None]).last_hidden_state[0]
    return Oracle(config, load_file(folder / "model.safetensors"), ids, logits, bins, audio)


@torch.no_grad()
def whole_pass(trunk: Trunk, ids: Tensor) -> Tensor:
    rows = RowBatch.build([0], [len(ids)], [0])
    return trunk.logits(trunk(trunk.embed(ids), None, rows))


@torch.no_grad()
def streamed(trunk: Trunk, ids: Tensor, cuts: list[int]) -> Tensor:
    state = trunk.bind(Arenas(trunk.arena_specs("t"), 3), "t")
    parts, done = [], 0
    for count in cuts:
        rows = RowBatch.build([1], [count], [done])
        parts.append(trunk.logits(trunk(trunk.embed(ids[done : done + count]), state, rows)))
        done += count
    assert done == len(ids)
    return torch.cat(parts)


def random_cuts(total: int, most: int) -> list[int]:
    cuts = []
    while total:
        cuts.append(min(total, int(torch.randint(1, most + 1, ()))))
        total -= cuts[-1]
    return cuts


def test_the_logits_are_of_a_size_that_errors_show_in(oracle: Oracle) -> None:
    assert 0.5 < float(oracle.logits.std()) < 4


def test_whole_prefill_matches(oracle: Oracle) -> None:
    assert oracle.error(whole_pass(oracle.trunk(), oracle.ids)) <= BAR


def test_random_chunks_match(oracle: Oracle) -> None:
    cuts = random_cuts(TOKENS, oracle.config.max_rows_per_tick)
    assert oracle.error(streamed(oracle.trunk(), oracle.ids, cuts)) <= BAR


def test_one_row_at_a_time_matches(oracle: Oracle) -> None:
    got = streamed(oracle.trunk(), oracle.ids, [1] * TOKENS)
    assert oracle.error(got) <= BAR


def test_the_audio_tower_matches(oracle: Oracle) -> None:
    tower = AudioTower(oracle.config.hidden_size)
    load_released_audio(tower, oracle.tensors)
    with torch.no_grad():
        assert float((tower(oracle.bins) - oracle.audio).abs().max()) <= 1e-5


def test_without_the_relative_bias_it_does_not_match(oracle: Oracle) -> None:
    trunk = oracle.trunk()
    with torch.no_grad():
        for name, tensor in trunk.named_parameters():
            if "rel_bank" in name:
                tensor.zero_()
    assert oracle.error(whole_pass(trunk, oracle.ids)) > DROPPED


def test_without_the_selection_bias_it_does_not_match(oracle: Oracle) -> None:
    trunk = oracle.trunk()
    for name, tensor in trunk.named_buffers():
        if name.endswith("mlp.bias"):
            tensor.zero_()
    assert oracle.error(whole_pass(trunk, oracle.ids)) > DROPPED


def test_without_log_scaling_it_does_not_match(oracle: Oracle) -> None:
    trunk = oracle.trunk(dataclasses.replace(oracle.config, log_floor=None))
    got = whole_pass(trunk, oracle.ids)
    assert oracle.error(got) > DROPPED
    floor = oracle.config.log_floor
    assert float((got - oracle.logits)[:floor].abs().max()) <= BAR, "tau is 1 up to the floor"


@pytest.mark.parametrize("module", [attention_module, layer_module], ids=["k and v", "residual"])
def test_without_the_inner_residual_of_a_convolution_it_does_not_match(
    oracle: Oracle, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(x: Tensor, *args: Any) -> Tensor:
        return short_conv(x, *args) - x

    monkeypatch.setattr(module, "short_conv", without)
    assert oracle.error(whole_pass(oracle.trunk(), oracle.ids)) > DROPPED
