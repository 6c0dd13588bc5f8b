"""From images to the patches the model sees (spec/inkling.md 1.5). No torch.

A patch holds two moments of 40 x 40 pixels: a still image twice, a video frame after the one pushed
before it, so that every frame shows what moved and none waits for the next.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.errors import ImageError, InputError

EDGE = 40
PATCH = (2, EDGE, EDGE, 3)
"""The shape of a patch: the moment before, the moment; rows, columns, red green blue."""

PADDING = -1
"""What a patch holds right of and below its image."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Video:
    """What a session says it is going to be shown: frames of so many pixels, so many a second. It
    may show less or more: what waits is bounded all the same. Raises InputError.
    """

    width: int
    height: int
    fps: float

    def __post_init__(self) -> None:
        for name in ("width", "height", "fps"):
            value = getattr(self, name)
            kinds = (int, float) if name == "fps" else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                wanted = "a number" if name == "fps" else "a whole number"
                raise InputError(f"video: {name} must be {wanted} above 0, got {value!r}")

    def patches_a_tick(self, tick_ms: int) -> int:
        """Worked example: 160 x 120 pixels are 3 rows of 5 patches; 10 of them a second are 15 in
        every tick of 100 ms, 4 a second are 6.
        """
        return math.ceil(num_patches(self.height, self.width) * self.fps * tick_ms / 1000)


def num_patches(height: int, width: int) -> int:
    """ceil(height / 40) rows of floor(width / 40) + 1 patches."""
    return -(-height // EDGE) * (width // EDGE + 1)


def to_patches(image: Any, max_patches: int, before: Pixels | None = None) -> NDArray[np.int16]:
    """A PIL image, [H, W, 3] uint8 or an encoded file's bytes -> [N, 2, 40, 40, 3] int16, row by
    row, values 0 to 255 and -1 where there is no pixel.

    before: [H, W, 3] uint8, the frame before; without one, or with one of another size, the image
            stands for it too

    Worked example: 640 x 480 pixels are 12 rows of 17 patches, the last column all padding. Raises
    ImageError, for large images before decoding.
    """
    pixels = to_pixels(image, max_patches)
    now = _tiles(pixels)
    if before is None or before.shape != pixels.shape:
        return np.stack([now, now], axis=1)
    return np.stack([_tiles(before), now], axis=1)


def _tiles(pixels: Pixels) -> NDArray[np.int16]:
    """[H, W, 3] -> [N, 40, 40, 3]."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // EDGE), width // EDGE + 1
    padded = np.full((rows * EDGE, columns * EDGE, 3), PADDING, np.int16)
    padded[:height, :width] = pixels
    return padded.reshape(rows, EDGE, columns, EDGE, 3).swapaxes(1, 2).reshape(-1, EDGE, EDGE, 3)


def fit_size(height: int, width: int, max_patches: int) -> tuple[int, int]:
    """The largest height and width of the same shape, not above the given ones, of at most
    max_patches (1 or more) patches.

    Worked example: 640 x 480 pixels in 20 patches are 199 x 149: 4 rows of 5, where one pixel more
    in width would add a column of padding.
    """
    long = max(height, width)
    for edge in range(min(long, EDGE * max_patches), 1, -1):
        h, w = (max(1, (size * edge + long // 2) // long) for size in (height, width))
        if num_patches(h, w) <= max_patches:
            return h, w
    return 1, 1


def to_pixels(image: Any, max_patches: int) -> Pixels:
    """A PIL image, [H, W, 3] uint8 or an encoded file's bytes -> [H, W, 3] uint8. Raises
    ImageError.
    """
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
