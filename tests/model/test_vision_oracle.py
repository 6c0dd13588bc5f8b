"""Pixels, tower and placing of image rows against transformers, through the released names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.model.inkling import vision
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.names import load_released, load_released_audio
from microturn.model.inkling.trunk import AudioTower, Trunk
from microturn.model.inkling.vision import VisionConfig, VisionTower
from microturn.model.inkling.vision_names import load_released_vision
from microturn.runtime import image_input
from microturn.runtime.image_input import to_patches
from oracles.inkling import released_sizes

pytestmark = pytest.mark.oracle

PIXELS = json.loads((Path(__file__).parents[1] / "data" / "inkling_pixels.json").read_text())
IMAGE_ID, AUDIO_ID = 93, 94
HIDDEN = 64
TRUNK = TrunkConfig(
    hidden_size=HIDDEN,
    num_layers=2,
    global_layers=(1,),
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    local_num_heads=2,
    local_num_kv_heads=1,
    local_head_dim=16,
    sliding_window=8,
    global_window=64,
    d_rel=16,
    rel_extent=12,
    log_floor=16,
    log_alpha=0.1,
    num_dense_layers=1,
    dense_width=96,
    num_experts=4,
    top_k=2,
    num_shared_experts=1,
    expert_width=32,
    route_scale=8.0,
    vocab_size=96,
    unpadded_vocab_size=90,
    mup_multiplier=4.0,
    eps=1e-6,
    conv_kernel=4,
    max_rows_per_tick=64,
)


def image(height: int, width: int) -> Any:
    y, x, c = np.indices((height, width, 3))
    return ((7 * y * y + 13 * x + 29 * x * y + 101 * c + y * c) % 256).astype(np.uint8)


def pixels(height: int, width: int) -> Tensor:
    tower = VisionTower(VisionConfig((16, 16, 16)), 16)
    return tower.normalize(torch.from_numpy(to_patches(image(height, width), 1_000)))


def pixel_error(size: str) -> float:
    """How far our pixels are from the processor's; infinite for another grid."""
    want = PIXELS[size]
    got = pixels(*map(int, size.split("x")))
    if list(got.shape) != want["shape"]:
        return float("inf")
    sampled = got.reshape(-1)[want["at"]] - torch.tensor(want["values"])
    return max(
        float(sampled.abs().max()), abs(float(got.double().sum()) - want["sum"]) / got.numel()
    )


@pytest.mark.parametrize("size", PIXELS)
def test_pixels_are_those_of_the_released_processor(size: str) -> None:
    assert pixel_error(size) <= 1e-6


@pytest.mark.parametrize("size", PIXELS)
def test_pixels_are_those_of_the_processor_at_hand(size: str) -> None:
    pytest.importorskip("torchvision")
    transformers = pytest.importorskip("transformers", minversion="5.23")
    height, width = map(int, size.split("x"))
    made = transformers.InklingImageProcessor()(image(height, width), return_tensors="pt")
    want = made["pixel_values"]
    assert list(want.shape) == PIXELS[size]["shape"]
    assert float((pixels(height, width) - want).abs().max()) <= 1e-6


def test_without_the_extra_column_pixels_do_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = image_input._tiles
    monkeypatch.setattr(
        image_input,
        "_tiles",
        lambda p: tiles(p).reshape(2, 3, 40, 40, 3)[:, :2].reshape(-1, 40, 40, 3),
    )
    assert pixel_error("80x80") == float("inf")


def test_another_padding_or_another_order_of_patches_does_not_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_input, "PADDING", 0)
    assert pixel_error("80x80") > 1e-4
    monkeypatch.undo()
    tiles = image_input._tiles
    monkeypatch.setattr(
        image_input,
        "_tiles",
        lambda p: tiles(p).reshape(3, 5, 40, 40, 3).swapaxes(0, 1).reshape(-1, 40, 40, 3),
    )
    assert pixel_error("120x160") > 0.1


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A random model of released vision sizes (but for the trunk's width) saved by transformers,
    and what it makes of patches, and of text with an image and audio in it.
    """
    transformers = pytest.importorskip("transformers", minversion="5.23")
    from safetensors.torch import load_file

    torch.manual_seed(5)
    whole = transformers.InklingForConditionalGeneration(
        transformers.InklingConfig(
            text_config=released_sizes(TRUNK),
            audio_config={"n_mel_bins": 80, "mel_vocab_size": 16},
            vision_config={"num_hidden_layers": 4},
            image_token_id=IMAGE_ID,
            audio_token_id=AUDIO_ID,
        )
    ).eval()
    with torch.no_grad():
        for name, tensor in whole.state_dict().items():
            if tensor.is_floating_point():
                gain = tensor.dim() == 1 and "bias" not in name
                tensor.normal_(float(gain), 0.3 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5)
        whole.lm_head.weight.normal_(0, TRUNK.mup_multiplier * HIDDEN**-0.5)
    folder = tmp_path_factory.mktemp("released")
    whole.save_pretrained(folder)
    rng = np.random.default_rng(0)
    before, now = rng.integers(0, 256, (2, 70, 90, 3), np.uint8)
    patches = torch.from_numpy(to_patches(now, 100, before))
    values = VisionTower(VisionConfig((16, 16, 16)), 16).normalize(patches)
    ids = torch.tensor([3, 7, *[IMAGE_ID] * 6, 20, 21, *[AUDIO_ID] * 4, 9, 40, 41])
    bins = torch.randint(0, 16, (4, 80))
    with torch.no_grad():
        features = whole.model.vision_tower(values).last_hidden_state[:, 0]
        logits = whole(
            input_ids=ids[None], pixel_values=values, audio_input_ids=bins, use_cache=False
        ).logits[0]
    tensors = load_file(folder / "model.safetensors")
    return SimpleNamespace(
        tensors=tensors, patches=patches, features=features, ids=ids, bins=bins, logits=logits
    )


def features(oracle: SimpleNamespace) -> Tensor:
    tower = VisionTower(VisionConfig(), HIDDEN)
    load_released_vision(tower, oracle.tensors)
    with torch.no_grad():
        return tower(oracle.patches)  # type: ignore[no-any-return]


def test_features_are_those_of_transformers(oracle: SimpleNamespace) -> None:
    assert float(oracle.features.std()) > 0.5
    assert float((features(oracle) - oracle.features).abs().max()) <= 2e-5


def channel_first(x: Tensor, t: int, s: int) -> Tensor:
    return _folded(x, t, s, (0, 1, 3, 5, 7, 2, 4, 6))


def column_first(x: Tensor, t: int, s: int) -> Tensor:
    return _folded(x, t, s, (0, 1, 3, 5, 2, 6, 4, 7))


def frame_last(x: Tensor, t: int, s: int) -> Tensor:
    return _folded(x, t, s, (0, 1, 3, 5, 4, 6, 7, 2))


def _folded(x: Tensor, t: int, s: int, order: tuple[int, ...]) -> Tensor:
    n, frames, height, width, channels = x.shape
    cells = x.reshape(n, frames // t, t, height // s, s, width // s, s, channels).permute(order)
    return cells.reshape(n, frames // t, height // s, width // s, -1)


@pytest.mark.parametrize("order", [channel_first, column_first, frame_last])
def test_another_order_in_a_fold_does_not_match(
    oracle: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, order: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(vision, "fold", order)
    assert float((features(oracle) - oracle.features).abs().max()) > 0.1


def mixed_logits(oracle: SimpleNamespace, *, normed: bool) -> Tensor:
    """Text, image and audio rows in one sequence, the image's rows through embed_norm or not."""
    trunk, audio = Trunk(TRUNK), AudioTower(HIDDEN)
    load_released(trunk, oracle.tensors)
    load_released_audio(audio, oracle.tensors)
    with torch.no_grad():
        x = trunk.embed(oracle.ids)
        seen = features(oracle)
        x[oracle.ids == IMAGE_ID] = trunk.embed_norm(seen) if normed else seen
        x[oracle.ids == AUDIO_ID] = audio(oracle.bins)
        return trunk.logits(trunk(x, None, RowBatch.build([0], [len(x)], [0])))


def test_image_rows_go_in_after_the_norm_of_the_embedding(oracle: SimpleNamespace) -> None:
    assert float(oracle.logits.std()) > 0.5
    assert float((mixed_logits(oracle, normed=False) - oracle.logits).abs().max()) <= 1e-4
    assert float((mixed_logits(oracle, normed=True) - oracle.logits).abs().max()) > 1e-2
