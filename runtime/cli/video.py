"""Videos and folders of pictures in: frames by time, small enough for a tick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.cli.errors import UsageError
from microturn.runtime.image_input import fit_size, num_patches

if TYPE_CHECKING:
    from PIL.Image import Image

FRAME_PATCHES = 20
"""Rows of a frame at most, a third of what a tick has room for: 640 x 480 is seen as 199 x 149."""

DEFAULT_FPS = 2.0
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class TimedFrame:
    """pixels [H, W, 3] uint8, shown from at_ms of the input on."""

    at_ms: float
    pixels: NDArray[np.uint8]

    @property
    def num_patches(self) -> int:
        return num_patches(*self.pixels.shape[:2])


@dataclass(frozen=True)
class Video:
    """Frames by time; seconds: when the last one ends. No frames: nothing is seen."""

    frames: tuple[TimedFrame, ...] = ()
    seconds: float = 0.0


def read_video(path: Path, fps: float) -> Video:
    """At most `fps` frames a second of a video file, or the pictures of a folder, sorted by name,
    `fps` a second; each made small enough for FRAME_PATCHES patches, never larger.

    Raises UsageError when the path is missing, holds no pictures or cannot be decoded.
    """
    if not fps > 0:
        raise UsageError(f"--fps must be above 0, got {fps:g}")
    if path.is_dir():
        return _by_folder(path, fps)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a video, or a folder of pictures")
    return _by_av(path, fps)


def shrink(image: Image, max_patches: int = FRAME_PATCHES) -> NDArray[np.uint8]:
    """[H, W, 3] uint8: the picture at the largest size of its shape with so few patches."""
    from PIL.Image import Resampling

    height, width = fit_size(image.height, image.width, max_patches)
    small = image.convert("RGB")
    if small.size != (width, height):
        small = small.resize((width, height), Resampling.LANCZOS)
    return np.asarray(small, np.uint8)


def at_most(fps: float, frames: Iterator[tuple[float, Any]]) -> Iterator[tuple[float, Any]]:
    """Of (seconds, frame) by time, the first in each span of 1 / fps."""
    due = 0
    for seconds, frame in frames:
        span = int(seconds * fps + ROUNDING)
        if span >= due:
            due = span + 1
            yield seconds, frame


def timed(container: Any) -> Iterator[tuple[float, Any]]:
    """(seconds from the first frame, frame) of an open container's video."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    start = None
    for number, frame in enumerate(container.decode(stream)):
        seconds = frame.time if frame.time is not None else number / (stream.average_rate or 25)
        start = seconds if start is None else start
        yield float(seconds - start), frame


def _by_av(path: Path, fps: float) -> Video:
    import av

    frames: list[TimedFrame] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UsageError(f"{path} has no video track")
            every = 1 / float(container.streams.video[0].average_rate or fps)
            end = 0.0

            def all_of_it() -> Iterator[tuple[float, Any]]:
                nonlocal end
                for seconds, frame in timed(container):
                    end = seconds + every
                    yield seconds, frame

            for seconds, frame in at_most(fps, all_of_it()):
                frames.append(TimedFrame(seconds * 1000, shrink(frame.to_image())))
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} is not video that can be decoded: {reason}") from error
    if not frames:
        raise UsageError(f"{path} holds no frames")
    return Video(tuple(frames), end)


def _by_folder(path: Path, fps: float) -> Video:
    from PIL import Image

    known = Image.registered_extensions()
    pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in known and p.is_file())
    if not pictures:
        raise UsageError(f"{path} holds no pictures; --video wants PNG, JPEG, ... sorted by name")
    frames = []
    for number, picture in enumerate(pictures):
        try:
            with Image.open(picture) as image:
                frames.append(TimedFrame(number * 1000 / fps, shrink(image)))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UsageError(f"{picture} cannot be decoded: {error}") from error
    return Video(tuple(frames), len(frames) / fps)
