"""Delegation: the model asks its background model, the runtime carries the messages. No torch.

A `<delegate>` makes a `created` event in the tick's Output; the background model is called in
another thread with the conversation until then; its answer enters as context, in time and after all
that entered before. The session goes on meanwhile, and the user's speech cancels nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from microturn.runtime.background import Answer, Background, DelegationRequest
from microturn.runtime.clock import Clock
from microturn.runtime.conversation import Conversation, Line, lines_from_json
from microturn.runtime.errors import InputError, QueueFull, SessionClosed

if TYPE_CHECKING:
    from microturn.runtime.output import Output

log = logging.getLogger("microturn.runtime.delegation")

MAX_PENDING = 4
"""Delegations of one session under way."""

MAX_WAITING = 64
"""Delegations of all sessions that wait for a thread."""


class DelegationKind(StrEnum):
    """What became of a delegation. One `created` each; without a background model nothing follows,
    otherwise one of the others does.
    """

    CREATED = "delegation.created"
    ANSWERED = "delegation.answered"
    FAILED = "delegation.failed"
    CANCELLED = "delegation.cancelled"


class DelegationFailure(StrEnum):
    """Why one failed: the background model raised; took too long; too many are under way; its
    answer was not accepted.
    """

    ERROR = "error"
    TIMEOUT = "timeout"
    BUSY = "busy"
    REFUSED = "refused"


@dataclass(frozen=True)
class DelegationEvent:
    """An event of a delegation, in an Output.

    offset_ms  the session's media time of the `<delegate>`
    context    the conversation until then, with the `created` event only
    failure, detail  why it failed, for programs and for people
    """

    kind: DelegationKind
    id: str
    session_id: str
    offset_ms: float
    context: tuple[Line, ...] = ()
    failure: DelegationFailure | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """{"type", "id", "session", "offset_ms"} and what else it has."""
        values: dict[str, Any] = {
            "type": str(self.kind),
            "id": self.id,
            "session": self.session_id,
            "offset_ms": self.offset_ms,
        }
        if self.kind is DelegationKind.CREATED:
            values["context"] = [line._asdict() for line in self.context]
        if self.failure is not None:
            values |= {"failure": str(self.failure), "detail": self.detail}
        return values


@dataclass(frozen=True)
class DeskState:
    """What a snapshot holds of a session's delegations.

    count    made so far
    pending  their background model is asked again
    events   that no output has carried yet
    """

    count: int
    pending: Sequence[DelegationRequest]
    events: Sequence[DelegationEvent]


Enter = Callable[[Answer], Callable[[], None]]
"""Tokenizes an answer, and gives what puts it into the session's queue."""


class Desk:
    """One session's delegations. `lock` is only ever held briefly: ticks take it."""

    def __init__(
        self,
        session_id: str,
        conversation: Conversation,
        background: Background | None,
        enter: Enter,
    ) -> None:
        self.session_id = session_id
        self.conversation = conversation
        self.background = background
        self.enter = enter
        self.lock = threading.Lock()
        self.count = 0
        self.pending: dict[str, _Pending] = {}
        self.events: list[DelegationEvent] = []

    def save(self) -> DeskState:
        """Call with `lock` held."""
        pending = [p.request for p in self.pending.values()]
        return DeskState(self.count, pending, tuple(self.events))

    def finish(
        self, pending: _Pending, kind: DelegationKind, failure: Any = None, detail: str = ""
    ) -> None:
        """Its last event. Call with `lock` held, once it is pending no more."""
        request = pending.request
        event = DelegationEvent(kind, request.id, self.session_id, request.offset_ms)
        self.events.append(dataclasses.replace(event, failure=failure, detail=detail))


@dataclass(frozen=True)
class _Pending:
    request: DelegationRequest
    deadline: int = field(compare=False)


class Delegations:
    """The messenger between all sessions and their background models.

    Its `workers` threads start with the first session that has one and are daemons: a background
    model that never returns keeps one of them busy, and nothing else.
    """

    def __init__(self, clock: Clock, delegate_id: int, *, workers: int, timeout_s: float) -> None:
        self._clock = clock
        self._delegate_id = delegate_id
        self._workers = workers
        self._timeout_ns = round(timeout_s * 1e9)
        self._timeout_s = timeout_s
        self._desks: dict[str, Desk] = {}
        self._jobs: queue.SimpleQueue[tuple[Desk, _Pending] | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = False
        self._closed = False

    def join(self, desk: Desk) -> None:
        """A session that ticks from now on."""
        self._desks[desk.session_id] = desk
        if desk.background is not None:
            self._start()

    def resume(self, desk: Desk, state: DeskState) -> None:
        """The session goes on from a snapshot."""
        with desk.lock:
            desk.count = state.count
            desk.events += state.events
            for request in state.pending:
                self._ask(desk, request.id, request.offset_ms, request.context)

    def desk(self, session_id: str) -> Desk | None:
        """None for a session that is not open."""
        return self._desks.get(session_id)

    def leave(self, session_id: str) -> None:
        """The session ended: nobody waits for its answers any more."""
        desk = self._desks.pop(session_id, None)
        if desk is None:
            return
        with desk.lock:
            for pending in desk.pending.values():
                pending.request.cancelled.set()
            desk.pending.clear()

    def cancel(self, session_id: str, delegation_id: str) -> bool:
        """False when it was over already. Raises InputError for one that never was."""
        desk = self._desks.get(session_id)
        if desk is None:
            return False
        with desk.lock:
            pending = desk.pending.pop(delegation_id, None)
            if pending is not None:
                pending.request.cancelled.set()
                desk.finish(pending, DelegationKind.CANCELLED)
                return True
            count = desk.count
        number = str(delegation_id).removeprefix("d")
        if number.isdecimal() and delegation_id == _name(int(number)) and 1 <= int(number) <= count:
            return False
        raise InputError(
            f"session {session_id} made no delegation {delegation_id!r}, but {count} others"
        )

    def annotate(self, output: Output) -> Output:
        """Takes an output's text down, asks background models where it delegates, and gives it the
        events that are due. Called by ticks.
        """
        desk = self._desks.get(output.session_id)
        if desk is None:
            return output
        with desk.lock:
            for ms, token, piece in output.events:
                if token == self._delegate_id:
                    self._create(desk, ms)
                elif piece:
                    desk.conversation.said(ms, piece)
            desk.conversation.passed(output.end_ms)
            self._expire(desk)
            events, desk.events = tuple(desk.events), []
        return dataclasses.replace(output, delegations=events) if events else output

    def close(self) -> None:
        """Waits for nobody: threads end when their background model returns."""
        self._closed = True
        for _ in range(self._workers if self._started else 0):
            self._jobs.put(None)

    def _start(self) -> None:
        with self._starting:
            for number in range(0 if self._started else self._workers):
                name = f"microturn-background-{number}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
            self._started = True

    def _create(self, desk: Desk, ms: float) -> None:
        desk.count += 1
        name, context = _name(desk.count), desk.conversation.lines()
        created = DelegationEvent(DelegationKind.CREATED, name, desk.session_id, ms, context)
        desk.events.append(created)
        self._ask(desk, name, ms, context)

    def _ask(self, desk: Desk, name: str, ms: float, context: tuple[Line, ...]) -> None:
        if desk.background is None:
            return
        request = DelegationRequest(name, desk.session_id, ms, context)
        pending = _Pending(request, self._clock.now() + self._timeout_ns)
        if len(desk.pending) >= MAX_PENDING or self._jobs.qsize() >= MAX_WAITING:
            detail = f"{len(desk.pending)} of this session are under way, {self._jobs.qsize()} wait"
            desk.finish(pending, DelegationKind.FAILED, DelegationFailure.BUSY, detail)
            return
        desk.pending[name] = pending
        self._jobs.put((desk, pending))

    def _expire(self, desk: Desk) -> None:
        if not desk.pending:
            return
        now = self._clock.now()
        for pending in [p for p in desk.pending.values() if p.deadline <= now]:
            del desk.pending[pending.request.id]
            pending.request.cancelled.set()
            detail = f"no answer after {self._timeout_s:g} s"
            desk.finish(pending, DelegationKind.FAILED, DelegationFailure.TIMEOUT, detail)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed:
            desk, pending = job
            if not pending.request.cancelled.is_set():
                self._call(desk, pending)

    def _call(self, desk: Desk, pending: _Pending) -> None:
        request, enter = pending.request, None
        failure, detail = DelegationFailure.ERROR, ""
        assert desk.background is not None
        try:
            given = desk.background(request)
        except BaseException as error:
            detail = f"{type(error).__name__}: {error}"
        else:
            failure = DelegationFailure.REFUSED
            try:
                enter = desk.enter(_checked(given))
            except InputError as error:
                detail = str(error)
        with desk.lock:
            if desk.pending.pop(request.id, None) is None:
                log.info(
                    "session %s: the answer to %s came when nobody waited for it any more",
                    request.session_id,
                    request.id,
                )
                return
            try:
                if enter is not None:
                    enter()
                    desk.finish(pending, DelegationKind.ANSWERED)
            except (QueueFull, SessionClosed) as error:
                enter, detail = None, str(error)
            if enter is None:
                desk.finish(pending, DelegationKind.FAILED, failure, detail)
        if enter is None:
            log.warning("session %s: %s failed (%s)", request.session_id, request.id, failure)


def _name(count: int) -> str:
    return f"d{count}"


def _checked(given: Answer | str) -> Answer:
    """Raises InputError."""
    answer = Answer(given) if isinstance(given, str) else given
    if not isinstance(answer, Answer) or not isinstance(answer.text, str):
        raise InputError(
            f"a background model must answer an Answer or a str, got {type(given).__name__}"
        )
    if not answer.text.strip():
        raise InputError("the background model answered with an empty text")
    return answer


def event_from_json(values: Mapping[str, Any]) -> DelegationEvent:
    """What `to_json` gave. Raises KeyError, ValueError."""
    failure = values.get("failure")
    return DelegationEvent(
        DelegationKind(values["type"]),
        values["id"],
        values["session"],
        values["offset_ms"],
        lines_from_json(values.get("context", ())),
        DelegationFailure(failure) if failure else None,
        values.get("detail", ""),
    )
