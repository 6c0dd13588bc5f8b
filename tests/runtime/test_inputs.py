"""What callers may bring, and what is refused in words."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from microturn.runtime.audio_input import Resampler, check_rate, to_mono
from microturn.runtime.errors import AudioError, ImageError
from microturn.runtime.image_input import fit_size, num_patches, to_patches


@pytest.mark.parametrize("rate", [44_100, 48_000, 8_000, 11_025, 22_050.5])
def test_resampled_bits_do_not_depend_on_the_cuts(rate: float) -> None:
    rng = np.random.default_rng(1)
    audio = (rng.standard_normal(int(rate)) * 0.1).astype(np.float32)

    def run(cuts: list[int]) -> np.ndarray:
        resampler = Resampler(16_000)
        parts = [resampler.push(audio[a:b], rate) for a, b in pairwise(cuts)]
        return np.concatenate([*parts, resampler.flush()])

    whole = run([0, len(audio)])
    assert abs(len(whole) - 16_000) <= 1
    for count in (3, 40, 400):
        cuts = sorted(rng.integers(0, len(audio), count).tolist())
        assert np.array_equal(run([0, *cuts, len(audio)]), whole)


def test_resampling_keeps_a_tone_and_its_time() -> None:
    t = np.arange(44_100) / 44_100
    resampler = Resampler(16_000)
    tone = np.sin(2 * np.pi * 440 * t).astype(np.float32) * 0.5
    got = np.concatenate([resampler.push(tone, 44_100), resampler.flush()])
    want = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) * 0.5
    assert np.abs(got - want)[200:-200].max() < 1e-3


def test_a_change_of_rate_loses_nothing() -> None:
    resampler = Resampler(16_000)
    parts = [
        resampler.push(np.full(4_410, 0.25, np.float32), 44_100),
        resampler.push(np.full(1_600, 0.25, np.float32), 16_000),
        resampler.push(np.full(800, 0.25, np.float32), 8_000),
        resampler.flush(),
    ]
    assert len(np.concatenate(parts)) == 3 * 1_600
    assert np.abs(np.concatenate(parts)[800:-800] - 0.25).max() < 0.2


def test_int16_and_channels_become_mono_floats() -> None:
    pcm = np.array([[-32768, 0], [16384, 16384]], np.int16)
    assert to_mono(pcm).tolist() == [-0.5, 0.5]
    assert to_mono(np.array([0.5, 1.5])).tolist() == [0.5, 1.0]
    buffer = np.zeros(4, np.float32)
    mono = to_mono(buffer)
    buffer[:] = 1
    assert not mono.any()


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (np.array([0.0, np.nan]), "1 NaN or infinite samples of 2"),
        (np.array([np.inf, 0.0], np.float32), "must be finite"),
        (np.zeros(4, np.int32), "int16 or floating point, got int32"),
        (np.zeros((2, 4_000), np.float32), r"transpose \[channels, n\]"),
        (np.zeros((1, 2, 3), np.float32), "channels"),
        (np.float32(0.5), "channels"),
        (np.array([8_000.0]), "pass 16-bit samples as int16"),
        ("sound", "int16 or floating point"),
    ],
)
def test_audio_of_a_wrong_kind_is_refused_in_words(pcm: Any, says: str) -> None:
    with pytest.raises(AudioError, match=says):
        to_mono(pcm)


@pytest.mark.parametrize("rate", [0, -16_000, float("nan"), 16, 10**9, "16000", None, True])
def test_a_wrong_rate_is_refused(rate: Any) -> None:
    with pytest.raises(AudioError, match="rate must be"):
        check_rate(rate)


@pytest.mark.parametrize(("height", "width", "count"), [(480, 640, 204), (80, 80, 6), (1, 1, 1)])
def test_patches_follow_the_released_grid(height: int, width: int, count: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    patches = to_patches(image, 1_000)
    assert len(patches) == num_patches(height, width) == count
    columns = width // 40 + 1
    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        tile = patches[y // 40 * columns + x // 40]
        assert (tile[:, y % 40, x % 40] == image[y, x]).all()
    filled = np.zeros((len(patches) // columns * 40, columns * 40), bool)
    filled[:height, :width] = True
    tiles = filled.reshape(-1, 40, columns, 40).swapaxes(1, 2).reshape(-1, 1, 40, 40, 1)
    assert ((patches != -1) == tiles).all(), "-1 right and below, and nowhere else"
    assert patches.dtype == np.int16 and (patches[:, 0] == patches[:, 1]).all()


def test_a_frame_stands_beside_the_one_before_it_if_that_has_its_size() -> None:
    rng = np.random.default_rng(0)
    before, now = rng.integers(0, 256, (2, 50, 90, 3), np.uint8)
    pair = to_patches(now, 100, before)
    assert np.array_equal(pair[:, 1], to_patches(now, 100)[:, 1])
    assert np.array_equal(pair[:, 0], to_patches(before, 100)[:, 1])
    assert np.array_equal(to_patches(now, 100, before[:49]), to_patches(now, 100))


@pytest.mark.parametrize("height", [1, 40, 120, 480, 1080, 2000])
@pytest.mark.parametrize("width", [1, 39, 40, 160, 640, 1920])
def test_a_frame_is_made_just_small_enough(height: int, width: int) -> None:
    for most in (1, 2, 20, 61):
        h, w = fit_size(height, width, most)
        assert 1 <= h <= height and 1 <= w <= width
        assert num_patches(h, w) <= most
        if num_patches(height, width) <= most:
            assert (h, w) == (height, width)
        elif min(h, w) >= 10:
            assert abs(h / w - height / width) <= 0.06 * height / width
            scale = (max(h, w) + 1) / max(height, width)
            assert num_patches(int(height * scale + 0.5), int(width * scale + 0.5)) > most
    assert fit_size(480, 640, 20) == (149, 199)


def test_images_come_as_arrays_pillow_images_or_bytes() -> None:
    array = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    picture = Image.fromarray(array)
    file = io.BytesIO()
    picture.save(file, "PNG")
    want = to_patches(array, 100)
    assert np.array_equal(to_patches(picture, 100), want)
    assert np.array_equal(to_patches(file.getvalue(), 100), want)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"no image", "pillow can read"),
        (np.zeros((4, 4), np.uint8), r"\[H, W, 3\] uint8, got \[4, 4\] uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), "needs pixels"),
        (np.zeros((4_000, 40, 3), np.uint8), "200 patches, the queue holds 100"),
        ("picture.png", "got str"),
    ],
)
def test_images_of_a_wrong_kind_are_refused_in_words(image: Any, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        to_patches(image, 100)


def test_a_truncated_image_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(
        file, "PNG"
    )
    with pytest.raises(ImageError, match="decoded"):
        to_patches(file.getvalue()[:-5_000], 100)
