"""From an image to the patches the model sees (spec/inkling.md 1.5). No torch."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.errors import ImageError

PATCH = 40


def num_patches(height: int, width: int) -> int:
    """ceil(height / 40) rows of floor(width / 40) + 1 patches."""
    return -(-height // PATCH) * (width // PATCH + 1)


def to_patches(image: Any, max_patches: int) -> NDArray[np.uint8]:
    """A PIL image, [H, W, 3] uint8 or an encoded file's bytes -> [N, 40, 40, 3] uint8, row by row.

    Worked example: 640 x 480 pixels are 12 rows of 17 patches, the last column all padding. Patches
    are padded with zeros right and below. Raises ImageError, for large images before decoding.
    """
    pixels = _pixels(image, max_patches)
    height, width = pixels.shape[:2]
    rows, columns = -(-height // PATCH), width // PATCH + 1
    padded = np.zeros((rows * PATCH, columns * PATCH, 3), np.uint8)
    padded[:height, :width] = pixels
    tiles = padded.reshape(rows, PATCH, columns, PATCH, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(-1, PATCH, PATCH, 3))


def _pixels(image: Any, max_patches: int) -> NDArray[np.uint8]:
    from PIL import Image

    if isinstance(image, bytes | bytearray | memoryview):
        try:
            image = Image.open(io.BytesIO(bytes(image)))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"the bytes are no image that pillow can read: {error}") from None
    if isinstance(image, Image.Image):
        _check_size(image.height, image.width, max_patches)
        try:
            return np.asarray(image.convert("RGB"), np.uint8)
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageError(f"the image cannot be decoded: {error}") from None
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"an image is a PIL image, [H, W, 3] uint8 or encoded bytes, got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f"an image array must be [H, W, 3] uint8, got {list(image.shape)} {image.dtype}"
        )
    _check_size(image.shape[0], image.shape[1], max_patches)
    return image


def _check_size(height: int, width: int, max_patches: int) -> None:
    if not height or not width:
        raise ImageError(f"an image needs pixels, got {height} x {width}")
    if num_patches(height, width) > max_patches:
        raise ImageError(
            f"{width} x {height} pixels are {num_patches(height, width)} patches, the queue holds "
            f"{max_patches}; scale the image down or raise image_queue_rows"
        )
