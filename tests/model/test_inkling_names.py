"""The table of released tensor names, against the published counts, and what loading refuses."""

from __future__ import annotations

import math

import pytest
import torch

from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.names import load_released, trunk_tensors
from microturn.model.inkling.trunk import Trunk

RELEASED = TrunkConfig(
    hidden_size=4096,
    num_layers=42,
    global_layers=(5, 11, 17, 23, 29, 35, 41),
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    local_num_heads=32,
    local_num_kv_heads=8,
    local_head_dim=128,
    sliding_window=512,
    global_window=8192,
    d_rel=16,
    rel_extent=1024,
    log_floor=128_000,
    log_alpha=0.1,
    num_dense_layers=2,
    dense_width=16_384,
    num_experts=256,
    top_k=6,
    num_shared_experts=2,
    expert_width=2048,
    route_scale=8.0,
    vocab_size=201_024,
    unpadded_vocab_size=200_058,
    mup_multiplier=16.0,
    eps=1e-6,
    conv_kernel=4,
    max_rows_per_tick=128,
)
SMALL = TrunkConfig(
    **{
        **vars(RELEASED),
        "hidden_size": 32,
        "num_layers": 2,
        "global_layers": (1,),
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "local_num_heads": 2,
        "local_num_kv_heads": 2,
        "local_head_dim": 32,
        "num_dense_layers": 1,
        "dense_width": 48,
        "num_experts": 4,
        "top_k": 2,
        "expert_width": 16,
        "vocab_size": 24,
        "unpadded_vocab_size": 20,
    }
)


def numbered(config: TrunkConfig) -> dict[str, torch.Tensor]:
    """Released tensors in which every value of the file is another number."""
    tensors, start = {"model.audio.encoder.weight": torch.zeros(3)}, 0
    for entry in trunk_tensors(config):
        size = math.prod(entry.shape)
        values = torch.arange(start, start + size, dtype=torch.float32)
        tensors["model.llm." + entry.name] = values.view(entry.shape)
        start += size
    return tensors


def test_the_published_size_has_the_published_counts() -> None:
    table = trunk_tensors(RELEASED)
    assert len(table) == 878  # 888 without MTP, less 8 of the vision tower and 2 of the audio tower
    assert sum(math.prod(entry.shape) for entry in table) == 263_655_199_274
    with torch.device("meta"):
        ours = Trunk(RELEASED).state_dict()
    assert sum(tensor.numel() for tensor in ours.values()) == 263_655_199_274


def test_every_value_has_one_place() -> None:
    trunk, tensors = Trunk(SMALL), numbered(SMALL)
    load_released(trunk, tensors)
    values = torch.cat([tensor.reshape(-1) for tensor in trunk.state_dict().values()])
    assert torch.equal(values.sort().values, torch.arange(len(values), dtype=torch.float32))


def test_projections_lie_in_the_order_they_are_split_in() -> None:
    trunk, tensors = Trunk(SMALL), numbered(SMALL)
    load_released(trunk, tensors)
    name = "model.llm.layers.1.attn."
    parts = [tensors[f"{name}{w}.weight"] for w in ("wq_du", "wk_dv", "wv_dv", "wr_du")]
    assert torch.equal(trunk.get_parameter("layers.1.attn.qkvr"), torch.cat(parts))
    taps = [tensors[f"{name}{w}.weight"].squeeze(1) for w in ("k_sconv", "v_sconv")]
    assert torch.equal(trunk.get_parameter("layers.1.attn.kv_conv"), torch.cat(taps))


def test_missing_extra_and_mis_shaped_tensors_are_named_and_nothing_is_loaded() -> None:
    trunk, tensors = Trunk(SMALL), numbered(SMALL)
    with torch.no_grad():
        trunk.norm.gain.fill_(7)
    del tensors["model.llm.layers.1.mlp.gate.bias"]
    tensors["model.llm.layers.2.attn_norm.weight"] = torch.zeros(32)
    tensors["model.llm.layers.0.mlp.w13_dn.weight"] = torch.zeros(48, 32)
    with pytest.raises(ValueError) as error:
        load_released(trunk, tensors)
    text = str(error.value)
    assert "model.llm.layers.1.mlp.gate.bias is missing, wanted [4]" in text
    assert "model.llm.layers.2.attn_norm.weight [32] is not part of this model" in text
    assert "model.llm.layers.0.mlp.w13_dn.weight is [48, 32], wanted [96, 32]" in text
    assert bool((trunk.norm.gain == 7).all())


def test_a_wrong_prefix_names_a_few_and_counts_the_rest() -> None:
    with pytest.raises(ValueError, match=r"embed.weight is missing, .*; and \d+ more$"):
        load_released(Trunk(SMALL), {})
