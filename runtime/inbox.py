"""What a session has been given and no tick has taken yet. Callers and ticks meet here, briefly.

No torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from microturn.runtime.errors import CloseReason, QueueFull, SessionClosed
from microturn.runtime.queues import AudioQueue, Frame, IdQueue, Patches, PatchQueue, Samples

if TYPE_CHECKING:
    from microturn.model.family import Sampling


class Budget(NamedTuple):
    """What a tick takes from each session: rows, audio rows, samples; whether patches are fed."""

    max_rows: int
    frames: int
    input_samples: int
    sees: bool


class Held(NamedTuple):
    """What one tick takes from one session.

    live     False while warming, when only context is taken
    dropped  samples dropped right before `audio` and not marked yet
    """

    live: bool
    dropped: int
    n_feedback: int
    context_ids: tuple[int, ...]
    patches: Patches
    audio: Samples
    sampling: Sampling


@dataclass
class Counters:
    """Samples at the model's rate, and other exact counts, over a session's life."""

    dropped_samples: int = 0
    silence_samples: int = 0
    ticks: int = 0
    late_ticks: int = 0
    missed_ticks: int = 0


@dataclass(frozen=True)
class InboxState:
    """What a snapshot holds of an inbox.

    audio       samples that wait; context_ids, frames likewise
    unmarked    dropped samples that no output has told of yet
    replaced    frames that newer ones took the place of
    owed        see Inbox
    """

    audio: Samples
    context_ids: tuple[int, ...]
    frames: tuple[Frame, ...]
    sampling: Sampling
    counters: Counters
    live: bool
    paused: bool
    draining: bool
    unmarked: int
    replaced: int
    owed: int


class Inbox:
    """Bounded queues and switches of one session, under one lock that is only ever held briefly.

    owed: ticks that passed without the session while its audio waits, for no fault of its own
    """

    def __init__(
        self,
        session_id: str,
        audio: AudioQueue,
        context: IdQueue,
        patches: PatchQueue,
        sampling: Sampling,
        *,
        drop_oldest: bool,
        excused: Callable[[], bool] = lambda: False,
    ) -> None:
        """excused: whether audio waits now because the ticks are late."""
        self.session_id = session_id
        self.lock = threading.Lock()
        self.audio = audio
        self.context = context
        self.patches = patches
        self.sampling = sampling
        self.paused = False
        self.draining = False
        self.live = False
        self.owed = 0
        self.closed: CloseReason | None = None
        self.counters = Counters()
        self._warmed = False
        self._drop_oldest = drop_oldest
        self._excused = excused
        self._unmarked = 0

    @property
    def listening(self) -> bool:
        """Whether a tick would hear it: not while it is paused, nor between warming ticks."""
        return not self.paused and (self.live or not self._warmed)

    def check_open(self) -> None:
        """Raises SessionClosed."""
        if self.closed is not None:
            raise SessionClosed(self.session_id, self.closed)

    def save(self) -> InboxState:
        """A copy. Call between ticks. Raises SessionClosed."""
        with self.lock:
            self.check_open()
            return InboxState(
                self.audio.waiting(),
                self.context.waiting(),
                self.patches.waiting(),
                self.sampling,
                replace(self.counters),
                self.live,
                self.paused,
                self.draining,
                self._unmarked,
                self.patches.replaced,
                self.owed,
            )

    def load(self, state: InboxState) -> None:
        """A new inbox goes on where another stood. Raises QueueFull when a queue here is too small
        for what waited there.
        """
        patches = sum(len(frame.patches) for frame in state.frames)
        for what, count, queue, knob in (
            ("samples", len(state.audio) * (not state.draining), self.audio, "input_queue_ms"),
            ("context tokens", len(state.context_ids), self.context, "context_queue_rows"),
            ("image patches", patches, self.patches, "image_queue_rows"),
        ):
            if count > queue.capacity:
                raise QueueFull(
                    f"session {self.session_id}: {count} {what} waited where it was saved, the "
                    f"queue here holds {queue.capacity}; raise {knob}"
                )
        with self.lock:
            self.audio.push(state.audio, tail=True)
            self.context.push(state.context_ids)
            self.patches.refill(state.frames)
            self.patches.replaced = state.replaced
            self.sampling = state.sampling
            self.counters = replace(state.counters)
            self.live, self.paused, self.draining = state.live, state.paused, state.draining
            self._unmarked, self.owed = state.unmarked, state.owed

    def drain(self, tail: Samples) -> None:
        """The last samples: the session ends when all is heard. Raises SessionClosed."""
        with self.lock:
            self.check_open()
            self.audio.push(tail, tail=True)
            self.draining = True
            self.paused = False

    def push_audio(self, samples: Samples) -> bool:
        """False when they do not fit and nothing may be dropped for them. It may, whatever the
        policy, where ticks are late or passed without the session, or it hears nothing. Raises
        SessionClosed.
        """
        with self.lock:
            self.check_open()
            fits = len(self.audio) + len(samples) <= self.audio.capacity
            own = self.listening and not self.owed
            if not fits and own and not self._drop_oldest and not self._excused():
                return False
            self._count_dropped(self.audio.push(samples))
        return True

    def push_context(self, ids: Sequence[int]) -> None:
        """Raises QueueFull, SessionClosed."""
        with self.lock:
            self.check_open()
            if not self.context.push(ids):
                raise QueueFull(
                    f"session {self.session_id}: {len(ids)} context tokens do not fit beside the "
                    f"{len(self.context)} waiting, the queue holds {self.context.capacity}; send "
                    f"them later or raise context_queue_rows"
                )

    def push_patches(self, patches: Patches, still: bool) -> None:
        """Raises QueueFull, SessionClosed."""
        with self.lock:
            self.check_open()
            if not self.patches.push(patches, still):
                raise QueueFull(
                    f"session {self.session_id}: {len(patches)} patches do not fit beside the "
                    f"{len(self.patches)} waiting, the queue holds {self.patches.capacity}; send "
                    f"the image later or raise image_queue_rows"
                )

    def hold(self, budget: Budget, *, n_feedback: int) -> Held | None:
        """Takes a tick's share, to be settled; None when paused or closed.

        Audio rows come first, then context, then patches. A session is warming until the context
        it was opened with fits beside a normal tick; of the audio that came meanwhile it
        hears the newest tick before the present one, however late the ticks were.
        """
        with self.lock:
            if self.paused or self.closed is not None:
                return None
            room = budget.max_rows - n_feedback
            live = self.live or len(self.context) <= room - budget.frames
            self._warmed = not n_feedback
            if live and self._warmed and not self.draining:
                self._count_dropped(self.audio.keep(2 * budget.input_samples))
            if live:
                room -= budget.frames
            ids = self.context.hold(min(room, len(self.context)))
            see = live and budget.sees
            return Held(
                live,
                self._unmarked,
                n_feedback,
                ids,
                self.patches.hold(room - len(ids) if see else 0),
                self.audio.hold(budget.input_samples if live else 0),
                self.sampling,
            )

    def settle(self, held: Held, committed: bool) -> None:
        """What was held is gone for good, or first in its queue again."""
        with self.lock:
            self._count_dropped(self.audio.settle(committed))
            self.context.settle(committed)
            self.patches.settle(committed)
            if committed and held.live:
                self.live = True
                self._unmarked -= held.dropped

    def keep_audio(self, samples: int) -> int:
        """Only so many of the newest samples stay, unless the session is to hear all it was given.
        Says how many were dropped.
        """
        with self.lock:
            dropped = 0 if self.draining else self.audio.keep(samples)
            self._count_dropped(dropped)
            return dropped

    def pending_rows(self) -> int:
        """Context and patch rows that wait."""
        with self.lock:
            return len(self.context) + len(self.patches)

    def drained(self, sees: bool) -> bool:
        """Whether the session was asked to end after its input, and that is over."""
        with self.lock:
            patches = len(self.patches) if sees else 0
            return self.draining and not (len(self.audio) + len(self.context) + patches)

    def close(self, reason: CloseReason) -> bool:
        """False when it was closed before; the first reason stays."""
        with self.lock:
            if self.closed is not None:
                return False
            self.closed = reason
            for queue in (self.audio, self.context, self.patches):
                queue.clear()
            return True

    def _count_dropped(self, samples: int) -> None:
        self.counters.dropped_samples += samples
        self._unmarked += samples
