"""A camera of this machine, its newest frame at a steady pace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.cli.errors import UsageError
from microturn.runtime.cli.video import at_most, shrink, timed

DEVICES = Path("/dev")


class Source(Protocol):
    """What a camera is opened from: Video4Linux, or something else in tests."""

    def __call__(self) -> Any:
        """An open container of av; raises UsageError in words."""
        ...


def v4l2(number: int) -> Source:
    """/dev/video<number>, opened when called."""

    def open_it() -> Any:
        import av

        path = DEVICES / f"video{number}"
        if not path.exists():
            there = sorted(p.name.removeprefix("video") for p in DEVICES.glob("video[0-9]*"))
            known = f"there is {', '.join(there)}" if there else "this machine has none"
            raise UsageError(f"--camera {number}: there is no {path}; {known}")
        try:
            return av.open(str(path), format="v4l2")
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"--camera {number}: {path} cannot be opened: {reason}; another program may hold "
                f"it, or you may need to be in the group video"
            ) from error

    return open_it


class Camera:
    """Hands at most `fps` frames a second to `see`, from a thread of its own, while entered.

    see: gets [H, W, 3] uint8; what it raises ends the camera, as the end of the source does.
    """

    def __init__(
        self, source: Source, fps: float, see: Callable[[NDArray[np.uint8]], None]
    ) -> None:
        """Raises UsageError when there is no such camera."""
        self._container = source()
        self._fps = fps
        self._see = see
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="microturn-camera", daemon=True)
        self.frames = 0
        self.failure: Exception | None = None

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        try:
            with self._container:
                for _, frame in at_most(self._fps, self._until_stopped()):
                    self._see(shrink(frame.to_image()))
                    self.frames += 1
        except Exception as error:  # a camera that fails must not end the talk
            self.failure = error

    def _until_stopped(self) -> Iterator[tuple[float, Any]]:
        for item in timed(self._container):
            if self._stop.is_set():
                return
            yield item
