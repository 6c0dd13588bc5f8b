"""What is done between ticks: sessions are copied out and put in; files are written elsewhere.

No torch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any, NamedTuple

from microturn.runtime.clock import Clock
from microturn.runtime.errors import MicroturnError, SnapshotError
from microturn.runtime.snapshot import SUFFIX, Snapshot, SnapshotInfo, write_snapshot

log = logging.getLogger("microturn.runtime.keeper")

PATIENCE = 20
"""Ticks without the slack it seems to need after which something is done all the same."""

MAX_WAITING = 4
"""Copies that wait for the disk; periodic ones are left out until there are fewer."""


class Copied(NamedTuple):
    """A session out of its runtime, how to make a snapshot of it, elsewhere, and whether its owner
    has closed it meanwhile.
    """

    position_ms: int
    pack: Callable[[], Snapshot]
    over: Callable[[], bool]


Copy = Callable[[str], Copied | None]
"""Copies a session between ticks. None when it is being pushed to just now: ask again. Raises what
SnapshotInfo's reader shall see.
"""


class _Job(NamedTuple):
    """Something to do between ticks: False when it must be tried again after the next."""

    run: Callable[[], bool]
    future: Future[Any]


class Keeper:
    """Jobs between ticks, one after each tick at most, and a thread that writes what they copied.

    With a folder, every session is saved there every `every_s` seconds as its id with SUFFIX: the
    newest one stays when the process dies or ends, and goes when its owner closes the session.
    """

    def __init__(
        self,
        clock: Clock,
        copy: Copy,
        sessions: Callable[[], Iterable[str]],
        folder: Path | None,
        every_s: float,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """settle: called before a job, where a tick may still be under way between two others.

        Raises OSError when the folder cannot be made.
        """
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._copy = copy
        self._sessions = sessions
        self._folder = folder
        self._every = round(every_s * 1e9)
        self._settle = settle
        self._due: dict[str, int] = {}
        self._jobs: deque[_Job] = deque()
        self._longest_ns = 0
        self._waited = 0
        self._closed = False
        self._writes: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def save(self, session_id: str, path: Path) -> Future[SnapshotInfo]:
        """Done when the snapshot is safe on disk. Fails with SnapshotError, SessionClosed."""
        return self._save(session_id, path, periodic=False)

    def _save(self, session_id: str, path: Path, periodic: bool) -> Future[SnapshotInfo]:
        future: Future[SnapshotInfo] = Future()
        self._add(_Job(lambda: self._take(session_id, path, periodic, future), future))
        return future

    def run(self, job: Callable[[], Any]) -> Future[Any]:
        """Something else to do between two ticks."""
        future: Future[Any] = Future()

        def done() -> bool:
            _resolve(future, job())
            return True

        self._add(_Job(done, future))
        return future

    def between_ticks(self, slack_ns: float) -> bool:
        """At most one job: the oldest, when it is likely to fit. False when none is left."""
        if not self._jobs and self._folder is not None:
            self._add_due(self._folder)
        if not self._jobs:
            return False
        self._waited += 1
        if slack_ns < self._longest_ns and self._waited < PATIENCE:
            return True
        job = self._jobs.popleft()
        began = time.perf_counter_ns()
        self._settle()
        try:
            if not job.run():
                self._jobs.append(job)
                return True
        except Exception as error:
            _fail(job.future, error)
        self._waited = 0
        self._longest_ns = max(time.perf_counter_ns() - began, self._longest_ns * 7 // 8)
        return bool(self._jobs)

    def ended(self, session_id: str, *, forget: bool) -> None:
        """The session is no more; forget: neither is its periodic snapshot."""
        self._due.pop(session_id, None)
        if self._folder is not None and forget:
            path = self._folder / f"{session_id}{SUFFIX}"
            self._write_later(lambda: path.unlink(missing_ok=True))

    def save_all(self) -> None:
        """Every session once more, when no tick comes any more."""
        if self._folder is None or self._closed:
            return
        for session_id in self._sessions():
            self._save_periodic(session_id, self._folder)
        while self.between_ticks(math.inf):
            pass

    def close(self) -> None:
        """Writes what was copied; what was not fails."""
        self._closed = True
        while self._jobs:
            _fail(self._jobs.popleft().future, SnapshotError("the runtime was closed meanwhile"))
        self._writes.put(None)
        if self._thread is not None:
            self._thread.join()

    def _add(self, job: _Job) -> None:
        self._jobs.append(job)
        if self._closed:
            _fail(job.future, SnapshotError("the runtime is closed"))

    def _add_due(self, folder: Path) -> None:
        if self._writes.qsize() >= MAX_WAITING:
            return
        now = self._clock.now()
        for session_id in self._sessions():
            due = self._due.setdefault(session_id, now + self._every)
            if due <= now:
                self._due[session_id] = now + self._every
                self._save_periodic(session_id, folder)
                return

    def _save_periodic(self, session_id: str, folder: Path) -> None:
        future = self._save(session_id, folder / f"{session_id}{SUFFIX}", periodic=True)
        future.add_done_callback(_log_failure)

    def _take(
        self, session_id: str, path: Path, periodic: bool, future: Future[SnapshotInfo]
    ) -> bool:
        began = time.perf_counter()
        copied = self._copy(session_id)
        if copied is None:
            return False
        ended = time.perf_counter()

        def write() -> None:
            if periodic and copied.over():  # its file is removed, and may be already
                future.cancel()
                return
            try:
                size = write_snapshot(path, copied.pack())
            except OSError as error:
                _fail(future, SnapshotError(f"{path} cannot be written: {error}"))
                return
            except Exception as error:
                _fail(future, error)
                return
            info = SnapshotInfo(
                session_id=session_id,
                path=path,
                bytes=size,
                copy_ms=(ended - began) * 1000,
                seconds=time.perf_counter() - ended,
                position_ms=copied.position_ms,
            )
            log.info(
                "session %s saved at %d ms: %d bytes, %.1f ms of copying, %.3f s of writing",
                session_id,
                info.position_ms,
                size,
                info.copy_ms,
                info.seconds,
            )
            _resolve(future, info)

        self._write_later(write)
        return True

    def _write_later(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            name = "microturn-snapshot"
            self._thread = threading.Thread(target=self._write, name=name, daemon=True)
            self._thread.start()
        self._writes.put(job)

    def _write(self) -> None:
        while (job := self._writes.get()) is not None:
            try:
                job()
            except OSError:
                log.exception("a snapshot's file could not be removed")


def _log_failure(future: Future[SnapshotInfo]) -> None:
    if future.cancelled():
        return
    error = future.exception()
    if error is not None and not isinstance(error, MicroturnError):
        log.error("a periodic snapshot failed", exc_info=error)
    elif error is not None:
        log.warning("a periodic snapshot failed: %s", error)


def _resolve(future: Future[Any], value: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # whoever waited was told otherwise meanwhile
        future.set_result(value)


def _fail(future: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
