"""A small released folder of random weights, cut into shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.release import Inkling, save_release
from microturn.model.inkling.release_config import ReleaseConfig

SMALL = TrunkConfig(
    hidden_size=32,
    num_layers=2,
    global_layers=(1,),
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    local_num_heads=2,
    local_num_kv_heads=2,
    local_head_dim=32,
    sliding_window=8,
    global_window=64,
    d_rel=16,
    rel_extent=12,
    log_floor=16,
    log_alpha=0.1,
    num_dense_layers=1,
    dense_width=48,
    num_experts=4,
    top_k=2,
    num_shared_experts=2,
    expert_width=16,
    route_scale=8.0,
    vocab_size=32,
    unpadded_vocab_size=30,
    mup_multiplier=4.0,
    eps=1e-6,
    conv_kernel=4,
    max_rows_per_tick=32,
)


@pytest.fixture(scope="session")
def small() -> Inkling:
    model = Inkling.empty(ReleaseConfig(SMALL, audio_mels=4, audio_bins=16))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, part, _ in model.parts():
            for tensor in part.state_dict().values():
                tensor.normal_(generator=generator)
    return model


@pytest.fixture(scope="session")
def released(small: Inkling, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    save_release(small, folder, shard_bytes=20_000)
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return folder
