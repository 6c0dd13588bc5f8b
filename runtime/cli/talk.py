"""`microturn talk`: a microphone, a loudspeaker, perhaps a camera, and a session between them."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from microturn.runtime.cli.audio import level
from microturn.runtime.cli.camera import Camera, Source
from microturn.runtime.cli.errors import UsageError
from microturn.runtime.cli.live import Status, View, view
from microturn.runtime.cli.report import UNTRAINED
from microturn.runtime.cli.rings import Ring
from microturn.runtime.cli.video import DEFAULT_FPS

if TYPE_CHECKING:
    from microturn.runtime import Session
    from microturn.runtime.cli.run import ModelOptions

HEADPHONES = (
    "Wear headphones: the model hears everything the microphone does, its own voice from a "
    "loudspeaker included, and there is no echo canceller in between."
)
RING_SECONDS = 2.0
POLL_SECONDS = 0.005
_NO_CAMERA = contextlib.nullcontext()


class Stream(Protocol):
    """A running duplex device stream: audio flows while it is entered."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: Any) -> Any: ...


class Device(Protocol):
    """What talk needs of an audio device: sounddevice behind `SoundDevice`, a fake in tests."""

    def open(self, rate: int, callback: Callable[..., None]) -> Stream:
        """A mono fp32 duplex stream calling callback(indata, outdata, frames, time, status)."""
        ...


class SoundDevice:
    """The machine's default input and output, through PortAudio."""

    def __init__(self) -> None:
        """Raises UsageError saying what to install."""
        try:
            self._library: Any = importlib.import_module("sounddevice")
        except ModuleNotFoundError:
            raise UsageError(
                "talk needs sounddevice: pip install 'microturn[talk]', and PortAudio "
                "(Debian, Ubuntu: apt install libportaudio2)"
            ) from None
        except OSError as error:
            raise UsageError(
                f"sounddevice finds no PortAudio ({error}); Debian, Ubuntu: apt install "
                f"libportaudio2"
            ) from None

    def open(self, rate: int, callback: Callable[..., None]) -> Stream:
        """Raises UsageError when there is no device, or none that runs at this rate."""
        try:
            stream: Stream = self._library.Stream(
                samplerate=rate, channels=1, dtype="float32", latency="low", callback=callback
            )
        except self._library.PortAudioError as error:
            raise UsageError(
                f"no microphone and loudspeaker at {rate} Hz, mono: {error}; "
                f"`microturn doctor` lists what there is"
            ) from None
        return stream


@dataclass
class Duplex:
    """The device side: rings filled and emptied by the callback, which never waits.

    heard, said  mono fp32 rings, microphone to session and session to loudspeaker
    lead         samples of the reply to hold before playing, so that a late tick is not heard
    """

    heard: Ring
    said: Ring
    lead: int
    lost_samples: int = 0
    underruns: int = 0
    device_flags: int = 0
    _playing: bool = field(default=False, init=False)

    def callback(
        self,
        indata: NDArray[np.float32],
        outdata: NDArray[np.float32],
        frames: int,
        time_info: object,
        status: object,
    ) -> None:
        """indata, outdata [frames, 1]. Runs in the device's thread."""
        if status:
            self.device_flags += 1
        self.lost_samples += self.heard.write(indata[:, 0])
        self._playing = self._playing or len(self.said) >= self.lead
        filled = self.said.read_into(outdata[:, 0]) if self._playing else 0
        outdata[filled:, 0] = 0.0
        if self._playing and filled < frames:
            self.underruns += 1
            self._playing = False


def talk(
    session: Session,
    device: Device,
    status: Status,
    shown: View,
    *,
    rate: int,
    stop: Callable[[], bool],
) -> Duplex:
    """Moves audio both ways until stop() is true or the session ends; fills status as it goes.

    rate: of the model's output, and asked of the device for both directions.
    """
    tick = rate * status.tick_ms // 1000
    capacity = int(RING_SECONDS * rate)
    duplex = Duplex(Ring(capacity), Ring(capacity), lead=tick)
    with device.open(rate, duplex.callback):
        while not stop() and session.closed_reason is None:
            heard = duplex.heard.read(tick)
            if len(heard):
                session.push_audio(heard, rate)
                status.heard = level(heard)
            while (output := session.poll()) is not None:
                duplex.lost_samples += duplex.said.write(output.audio)
                status.follow(output)
            status.extra = f"{duplex.underruns} underruns   {duplex.lost_samples} samples lost"
            shown.show(status)
            time.sleep(POLL_SECONDS)
    return duplex


def talk_to(
    model: ModelOptions,
    device: Device,
    console: Console,
    *,
    instructions: str | None,
    seconds: float | None,
    camera: Source | None = None,
    fps: float = DEFAULT_FPS,
) -> None:
    """Loads the model, then talks until `seconds` are over or Ctrl-C, and shows it what the camera
    sees, when there is one. Raises UsageError.
    """
    from microturn.runtime import RealClock

    with model.runtime(RealClock()) as runtime:
        trained = runtime.family.trained
        console.print(f"[bold]{HEADPHONES}[/] Ctrl-C ends.", highlight=False)
        if not trained:
            console.print(f"[bold red]{UNTRAINED}[/]", highlight=False)
        if camera is not None and not runtime.family.sees:
            raise UsageError(f"{model.name} has no vision tower, it cannot see --camera")
        session = runtime.open(instructions=instructions, seed=model.seed)
        watching = Camera(camera, fps, session.push_image) if camera is not None else None
        status = Status(model.name, runtime.family.shape.tick_ms, untrained=not trained)
        runtime.start()
        end = float("inf") if seconds is None else time.monotonic() + seconds
        with view(console) as shown, watching or _NO_CAMERA, contextlib.suppress(KeyboardInterrupt):
            talk(
                session,
                device,
                status,
                shown,
                rate=runtime.family.shape.output_rate,
                stop=lambda: time.monotonic() >= end,
            )
        if watching is not None and watching.failure is not None:
            console.print(f"the camera stopped: {watching.failure}", highlight=False)
        if session.closed_reason is not None:
            raise UsageError(f"the session ended early ({session.closed_reason})")
        console.print(
            f"{status.ticks} ticks, {status.misses} misses, {status.extra}"
            + (f", {watching.frames} frames" if watching is not None else "")
            + ("" if trained else "  (untrained)"),
            highlight=False,
        )
