"""A session as its owner sees it. No torch."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from microturn.runtime.audio_input import Resampler, check_rate, to_mono
from microturn.runtime.background import Answer
from microturn.runtime.conversation import Conversation, Line, Source
from microturn.runtime.errors import (
    AudioError,
    CloseCode,
    CloseReason,
    ContextError,
    InputError,
    QueueFull,
    SessionClosed,
)
from microturn.runtime.image_input import Pixels, to_patches, to_pixels
from microturn.runtime.inbox import Inbox
from microturn.runtime.output import Output
from microturn.runtime.queues import OutputQueue
from microturn.runtime.session_state import SpokenState
from microturn.runtime.snapshot import SnapshotInfo

if TYPE_CHECKING:
    from microturn.model.family import Sampling


BUSY_S = 0.001
"""What a copy between ticks waits for a push under way; it is asked for again after the next."""


class Words(Protocol):
    """Text to ids."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class SessionStats:
    """A session's exact counts until now.

    ticks, late_ticks    outputs made, and those made after their deadline
    missed_ticks         ticks that passed without it and were not caught up: its media time is so
                         far behind the clock
    waiting_audio_ms     pushed and not yet heard: how far hearing lags behind pushing
    """

    ticks: int
    late_ticks: int
    missed_ticks: int
    inserted_silence_ms: float
    dropped_ms: float
    dropped_outputs: int
    replaced_images: int
    pending_rows: int
    waiting_audio_ms: float
    waiting_outputs: int


class Session:
    """One user's stream: push audio, images and text in, iterate over outputs.

    `for output in session` and `async for output in session` wait for the next output and end when
    the session has ended and all its outputs are read; `closed_reason` says why. `poll()` never
    waits: on a clock driven by hand, poll between ticks. Leaving `with session:` closes it.

    Every method may be called from any thread. None but the ones that read waits for a tick.
    """

    def __init__(
        self,
        inbox: Inbox,
        outbox: OutputQueue,
        *,
        seed: int,
        input_rate: int,
        tokenizer: Words | None,
        speak_ids: Sequence[int],
        end: Callable[[str, CloseReason], None],
        conversation: Conversation,
        cancel: Callable[[str, str], bool],
        snapshot: Callable[[str, Path], SnapshotInfo],
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._rate = input_rate
        self._tokenizer = tokenizer
        self._speak_ids = tuple(speak_ids)
        self._end = end
        self._conversation = conversation
        self._cancel = cancel
        self._snapshot = snapshot
        self._resampler = Resampler(input_rate)
        self._pushing = threading.Lock()
        self._last_frame: Pixels | None = None
        self.seed = seed

    @property
    def id(self) -> str:
        return self._inbox.session_id

    @property
    def state(self) -> str:
        """One of "warming" (its opening context is still being fed), "live", "paused", "closed"."""
        inbox = self._inbox
        if inbox.closed is not None:
            return "closed"
        if inbox.paused:
            return "paused"
        return "live" if inbox.live else "warming"

    @property
    def closed_reason(self) -> CloseReason | None:
        return self._inbox.closed

    @property
    def stats(self) -> SessionStats:
        inbox, per_ms = self._inbox, self._rate / 1000
        pending = inbox.pending_rows()
        counters = inbox.counters
        return SessionStats(
            ticks=counters.ticks,
            late_ticks=counters.late_ticks,
            missed_ticks=counters.missed_ticks,
            inserted_silence_ms=counters.silence_samples / per_ms,
            dropped_ms=counters.dropped_samples / per_ms,
            dropped_outputs=self._outbox.dropped,
            replaced_images=inbox.patches.replaced,
            pending_rows=pending,
            waiting_audio_ms=len(inbox.audio) / per_ms,
            waiting_outputs=len(self._outbox),
        )

    @property
    def conversation(self) -> tuple[Line, ...]:
        """What it was told and has said: what its background model is given."""
        return self._conversation.lines()

    def push_audio(self, pcm: Any, rate: float) -> None:
        """pcm [n] or [n, channels], int16 or float in [-1, 1], at `rate` Hz.

        Resampled here, in the caller's thread. More than the queue holds follows `input_overflow`.
        Raises AudioError when the samples are refused (all of them), SessionClosed.
        """
        self._check_open()
        rate = check_rate(rate)
        samples = to_mono(pcm)
        capacity_ms = self._inbox.audio.capacity * 1000 / self._rate
        if len(samples) * 1000 > capacity_ms * rate:
            raise AudioError(
                f"{len(samples) * 1000 / rate:.0f} ms in one push, the queue holds "
                f"{capacity_ms:.0f} ms; push as it is recorded, or raise input_queue_ms"
            )
        with self._pushing:
            self._check_open()
            fits = self._inbox.push_audio(self._resampler.push(samples, rate))
        if not fits:
            self._overflow(capacity_ms)

    def push_image(self, image: Any, *, still: bool = False) -> None:
        """image: a PIL image, [H, W, 3] uint8, or an encoded file's bytes; decoded here.

        A video frame (the default) is seen together with the one pushed before it, where they are
        of one size, and takes the place of one that the model has not begun to see. A still image
        is always seen. Images wait while the model has no vision tower.
        Raises ImageError, QueueFull, SessionClosed.
        """
        self._check_open()
        most = self._inbox.patches.capacity
        pixels = to_pixels(image, most)
        with self._pushing:
            self._check_open()
            before = None if still else self._last_frame
            self._inbox.push_patches(to_patches(pixels, most, before), still)
            if not still:
                self._last_frame = pixels.copy()

    def append_context(self, text: str, speak: bool = False) -> None:
        """The model knows the text from the tick on that takes its last token; with `speak` it is
        asked to voice it. Tokenized here. Raises ContextError, QueueFull, SessionClosed.
        """
        self._check_open()
        ids = context_ids(text, self._tokenizer, self._speak_ids if speak else None)
        with self._pushing:
            self._check_open()
            self._inbox.push_context(ids)
        self._conversation.told(Source.CONTEXT, text)

    def update(self, *, sampling: Sampling) -> None:
        """From the next tick on. Raises InputError, SessionClosed."""
        from microturn.model.family import Sampling as Kind

        self._check_open()
        if not isinstance(sampling, Kind):
            raise InputError(f"sampling must be a Sampling, got {type(sampling).__name__}")
        self._inbox.sampling = sampling

    def pause(self) -> None:
        """From the next tick on nothing is heard or said, and nothing changes but the clock; of
        the audio pushed meanwhile the newest tick is kept. Raises SessionClosed.
        """
        self._check_open()
        self._inbox.paused = True

    def resume(self) -> None:
        """Raises SessionClosed."""
        self._check_open()
        self._inbox.paused = False

    def close(self, *, drain: bool = False) -> None:
        """Ends the session and frees its slot; outputs already made can still be read.

        drain: first hear everything accepted so far (a paused session resumes), then end. Closing
        twice is fine.
        """
        if self._inbox.closed is not None:
            return
        if not drain:
            self._end(self.id, CloseReason(CloseCode.CLOSED, "closed by its owner"))
            return
        with self._pushing, contextlib.suppress(SessionClosed):
            if not self._inbox.draining:
                self._inbox.drain(self._resampler.flush())

    def cancel_delegation(self, delegation_id: str) -> bool:
        """Nobody waits for its answer any more, and the next output says so; the background model
        may notice. False when it was over before. Raises InputError for one that never was.
        """
        return self._cancel(self.id, delegation_id)

    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        """See Runtime.snapshot."""
        return self._snapshot(self.id, Path(path))

    def save(self) -> SpokenState | None:
        """For a snapshot, between ticks; None while a push is under way. Raises SessionClosed."""
        if not self._pushing.acquire(timeout=BUSY_S):
            return None
        try:
            return SpokenState(
                self.seed,
                self._resampler.save(),
                self._last_frame,
                self._inbox.save(),
                self._outbox.save(),
                self._conversation.lines(),
            )
        finally:
            self._pushing.release()

    def load(self, state: SpokenState, now_ms: float) -> None:
        """A new session goes on where another stood. Raises QueueFull when less may wait here."""
        self._inbox.load(state.inbox)
        if not self._outbox.load(state.outbox):
            raise QueueFull(
                f"session {self.id}: {len(state.outbox.outputs)} outputs were not read where it "
                f"was saved, fewer may wait here; raise output_queue_ticks"
            )
        self._resampler.resume(state.resampler)
        self._last_frame = state.last_frame
        self._conversation.refill(state.lines, now_ms)

    def prepare(self, answer: Answer) -> Callable[[], None]:
        """A background model's answer, tokenized, and what lets it in, which raises QueueFull or
        SessionClosed. Raises ContextError.
        """
        ids = context_ids(answer.text, self._tokenizer, self._speak_ids if answer.speak else None)

        def enter() -> None:
            self._inbox.push_context(ids)
            self._conversation.told(Source.BACKGROUND, answer.text)

        return enter

    def poll(self) -> Output | None:
        """The next output if there is one."""
        return self._outbox.poll()

    def read(self, timeout: float | None = None) -> Output | None:
        """Waits for the next output. None at the end, or after `timeout` seconds."""
        return self._outbox.get(timeout)

    def __iter__(self) -> Session:
        return self

    def __next__(self) -> Output:
        output = self._outbox.get()
        if output is None:
            raise StopIteration
        return output

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Output:
        output = await self._outbox.get_async()
        if output is None:
            raise StopAsyncIteration
        return output

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.state}>"

    def _check_open(self) -> None:
        self._inbox.check_open()
        if self._inbox.draining:
            reason = CloseReason(CloseCode.CLOSED, "closing once its input is heard")
            raise SessionClosed(self.id, reason)

    def _overflow(self, capacity_ms: float) -> None:
        detail = f"more than {capacity_ms:.0f} ms of audio were waiting"
        self._end(self.id, CloseReason(CloseCode.INPUT_OVERFLOW, detail))
        self._inbox.check_open()


def context_ids(
    text: Any, tokenizer: Words | None, speak_ids: Sequence[int] | None
) -> tuple[int, ...]:
    """The ids of a context text; speak_ids, when it is to be voiced, go before them.

    Raises ContextError.
    """
    if not isinstance(text, str):
        raise ContextError(f"context must be a string, got {type(text).__name__}")
    if tokenizer is None:
        raise ContextError("this model came without a tokenizer: put tokenizer.json beside it")
    if speak_ids is not None and not speak_ids:
        raise ContextError("this model's vocabulary has no way to ask for speech; use speak=False")
    return (*(speak_ids or ()), *tokenizer.encode(text))
