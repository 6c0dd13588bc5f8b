"""The vision tower: its size, its bits, and how it differs when one thing in it is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from microturn.kernels.testing import assert_bitwise_equal
from microturn.model.inkling import vision
from microturn.model.inkling.vision import VisionConfig, VisionTower, fold
from microturn.model.inkling.vision_names import load_released_vision, vision_tensors
from microturn.model.interaction import InteractionModel, preset

TINY = VisionConfig((16, 32, 48))


def tower(config: VisionConfig = TINY, hidden: int = 64) -> VisionTower:
    made = VisionTower(config, hidden)
    made.reset_parameters(torch.Generator().manual_seed(3))
    return made


def patches(count: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 256, (count, 2, 40, 40, 3), generator=g, dtype=torch.int16)


def test_the_published_size_has_the_published_count_and_names() -> None:
    with torch.device("meta"):
        small = InteractionModel(preset("interaction-small"))
    assert small.visual is not None
    assert sum(t.numel() for t in small.visual.state_dict().values()) == 64_080_384
    table = {entry.name: entry.shape for entry in vision_tensors(small.visual)}
    assert table == {
        "layers.linear_0.weight": (128, 75),
        "layers.linear_1.weight": (320, 512),
        "layers.linear_2.weight": (4800, 5120),
        "layers.linear_3.weight": (4096, 9600),
        "layers.norm_0.weight": (128,),
        "layers.norm_1.weight": (320,),
        "layers.norm_2.weight": (4800,),
        "final_norm.weight": (4096,),
    }


def test_a_fold_lays_out_frame_y_x_channel_the_channel_fastest() -> None:
    x = torch.arange(2 * 4 * 6 * 3).view(1, 2, 4, 6, 3)
    got = fold(x, 2, 2)
    assert got.shape == (1, 1, 2, 3, 2 * 2 * 2 * 3)
    want = [
        x[0, t, 2 + dy, 4 + dx, c]
        for t in (0, 1)
        for dy in (0, 1)
        for dx in (0, 1)
        for c in range(3)
    ]
    assert got[0, 0, 1, 2].tolist() == want
    assert fold(x, 1, 1) is x


def test_pixels_are_scaled_as_clip_was_trained_and_padding_before_that() -> None:
    values = torch.tensor([[-1, 0, 255]], dtype=torch.int16)
    got = tower().normalize(values)[0]
    want = [
        (v / 255 - m) / s for v, m, s in zip((-1, 0, 255), vision.MEAN, vision.STD, strict=True)
    ]
    assert got.tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_patch_has_the_same_bits_alone_and_in_any_company(threads: int) -> None:
    seen, made = patches(67), tower()
    with torch.inference_mode():
        alone = torch.cat([made(one[None]) for one in seen])
        torch.set_num_threads(threads)
        try:
            for start, stop in ((0, 67), (1, 3), (5, 22), (60, 67), (2, 66)):
                assert_bitwise_equal(made(seen[start:stop]), alone[start:stop], f"{start}:{stop}")
        finally:
            torch.set_num_threads(1)
    assert len({row.numpy().tobytes() for row in alone}) == 67


def test_both_moments_and_their_order_matter() -> None:
    seen, made = patches(2), tower()
    with torch.no_grad():
        rows = made(seen)
        swapped, doubled = made(seen.flip(1)), made(seen[:, 1:].expand_as(seen))
        bits_of_padding = made(seen.clamp_min(0))
    for other in (swapped, doubled):
        assert float((rows - other).abs().max()) > 0.1
    assert float((rows - bits_of_padding).abs().max()) > 1e-4


def test_it_learns() -> None:
    made = tower()
    made(patches(3)).square().mean().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"widths": (16, 40, 48)}, "widths must be positive multiples of 16"),
        ({"spatial_folds": (5, 2, 4)}, "spatial_folds must be 4 numbers"),
        ({"temporal_folds": (1, 1, 0, 2)}, "temporal_folds must be 4 numbers"),
        ({"eps": 0.0}, "eps must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_named(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        VisionConfig(**values)  # type: ignore[arg-type]


def test_what_is_no_patch_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"patches must be \[N, 2, 40, 40, 3\], got \[1, 40, 40, 3\]"
    ):
        tower()(patches(1)[:, 0])
    with pytest.raises(TypeError, match="int16"):
        tower()(patches(1).to(torch.uint8))


def test_released_tensors_have_one_place_each_and_a_wrong_one_is_named() -> None:
    made, tensors, start = tower(), {}, 0
    for entry in vision_tensors(made):
        size = math.prod(entry.shape)
        values = torch.arange(start, start + size, dtype=torch.float32)
        tensors["model.visual." + entry.name] = values.view(entry.shape)
        start += size
    load_released_vision(made, tensors)
    values = torch.cat([tensor.reshape(-1) for tensor in made.state_dict().values()])
    assert torch.equal(values.sort().values, torch.arange(len(values), dtype=torch.float32))
    tensors["model.visual.layers.linear_1.weight"] = torch.zeros(32, 63)
    with pytest.raises(ValueError, match=r"linear_1.weight is \[32, 63\], wanted \[32, 64\]"):
        load_released_vision(made, tensors)
