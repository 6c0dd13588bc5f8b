"""One recording through one session: what is pushed when, and what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microturn.runtime.cli.audio import Recording, Samples
from microturn.runtime.cli.errors import UsageError
from microturn.runtime.cli.events import TimedText
from microturn.runtime.cli.video import TimedFrame, Video

if TYPE_CHECKING:
    from microturn.runtime import Output, Runtime, Session

AHEAD = 3
"""Pieces pushed before the tick that hears the first of them: a late push is then not heard."""
POLL_SECONDS = 0.002
STALL_SECONDS = 10.0
NOTHING_SEEN = Video()


@dataclass(frozen=True)
class Script:
    """What a session hears and is told, cut into ticks of `samples_per_tick` samples.

    samples [N] fp32 mono at the model's rate; silence follows up to num_ticks.
    told, seen: text and frames by time
    """

    samples: Samples
    samples_per_tick: int
    tick_ms: int
    num_ticks: int
    told: tuple[TimedText, ...] = ()
    seen: tuple[TimedFrame, ...] = ()

    def piece(self, tick: int) -> Samples:
        """[samples_per_tick]: what is heard in this tick."""
        start = tick * self.samples_per_tick
        piece = self.samples[start : start + self.samples_per_tick]
        return np.pad(piece, (0, self.samples_per_tick - len(piece)))

    def texts(self, tick: int) -> list[TimedText]:
        """The events whose time lies in this tick."""
        return [event for event in self.told if self._within(event.at_ms, tick)]

    def frames(self, tick: int) -> list[TimedFrame]:
        """The frames whose time lies in this tick."""
        return [frame for frame in self.seen if self._within(frame.at_ms, tick)]

    def _within(self, at_ms: float, tick: int) -> bool:
        return tick * self.tick_ms <= at_ms < (tick + 1) * self.tick_ms


def script(
    recording: Recording,
    told: Sequence[TimedText],
    *,
    rate: int,
    tick_ms: int,
    tail_ms: int,
    video: Video = NOTHING_SEEN,
) -> Script:
    """The recording resampled whole, so that its first sample is heard at time 0; it ends with the
    later of recording and video, and the tail.

    Raises UsageError for text that would come after the end.
    """
    import soxr

    samples = recording.samples
    if recording.rate != rate:
        samples = soxr.resample(samples, recording.rate, rate, quality="VHQ")
    samples = np.clip(samples, -1.0, 1.0).astype(np.float32)
    total_ms = max(recording.seconds, video.seconds) * 1000 + tail_ms
    num_ticks = max(1, -(-round(total_ms * 1000) // (tick_ms * 1000)))
    late = [event for event in told if event.at_ms >= num_ticks * tick_ms]
    if late:
        raise UsageError(
            f"--text: the event at {late[0].at_ms:g} ms comes after the end of the run at "
            f"{num_ticks * tick_ms} ms; raise --tail-ms"
        )
    return Script(samples, rate * tick_ms // 1000, tick_ms, num_ticks, tuple(told), video.frames)


class Player:
    """Feeds a script to a session and takes its outputs, handing each to `watch`."""

    def __init__(self, session: Session, play: Script, watch: Callable[[Output], None]) -> None:
        self._session = session
        self._script = play
        self._watch = watch
        self._rate = play.samples_per_tick * 1000 // play.tick_ms
        self._pushed = 0
        self._since = 0.0
        self.ticks = 0

    @property
    def done(self) -> bool:
        return self.ticks >= self._script.num_ticks

    def begin(self) -> None:
        """The first tick's text, frames and audio; while the session warms no more is needed."""
        self._tell(0)
        self._push_until(1)

    def push_after_ticks(self) -> None:
        """Pushes what the ticks to come need."""
        if self.ticks:
            self._push_until(self.ticks + AHEAD)

    def push_at_pace(self, now: float) -> None:
        """Pushes at the pace of speech from the first output on, whatever the ticks do.

        now: seconds on time.monotonic.
        """
        if self.ticks:
            self._push_until(AHEAD + int((now - self._since) * 1000 / self._script.tick_ms))

    def collect(self) -> bool:
        """Takes the outputs that wait and tells what belongs to the tick after each; whether any.

        Raises UsageError when the session ended before its script did.
        """
        before = self.ticks
        while not self.done and (output := self._session.poll()) is not None:
            if not self.ticks:
                self._since = time.monotonic()
            self.ticks += 1
            self._tell(self.ticks)
            self._watch(output)
        if not self.done and self._session.closed_reason is not None:
            raise UsageError(f"the session ended early ({self._session.closed_reason})")
        return self.ticks > before

    def _push_until(self, count: int) -> None:
        while self._pushed < min(count, self._script.num_ticks):
            self._session.push_audio(self._script.piece(self._pushed), self._rate)
            self._pushed += 1

    def _tell(self, tick: int) -> None:
        for event in self._script.texts(tick):
            self._session.append_context(event.text, speak=event.speak)
        for frame in self._script.frames(tick):
            self._session.push_image(frame.pixels)


def play_fast(runtime: Runtime, players: Sequence[Player]) -> None:
    """Ticks by hand, one after the other, until every script is over. Raises UsageError."""
    for player in players:
        player.begin()
    while not all(player.done for player in players):
        for player in players:
            player.push_after_ticks()
        runtime.tick()
        for player in players:
            player.collect()


def play_real(runtime: Runtime, players: Sequence[Player]) -> None:
    """The clock's thread ticks, this one pushes and reads. Raises UsageError."""
    for player in players:
        player.begin()
    runtime.start()
    last = time.monotonic()
    while not all(player.done for player in players):
        now = time.monotonic()
        for player in players:
            player.push_at_pace(now)
        if sum(player.collect() for player in players):
            last = now
        elif now - last > STALL_SECONDS:
            raise UsageError(f"no tick made an output for {STALL_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
