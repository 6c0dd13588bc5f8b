"""Recording sessions: everything a tick was made of, streamed to disk by a thread of its own.

A session's folder holds `header.json`, `ticks.jsonl` (one line a committed tick: its plan, context
ids, changes of sampling, text and codes), and raw little-endian streams, in the order of the
ticks: `heard.f32` and `said.f32` (samples), `seen.i16` (patches). No torch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from microturn.runtime.engine import RowInput, RowOutput, TickOutputs
from microturn.runtime.plan import RowPlan, TickPlan

log = logging.getLogger("microturn.runtime.dump")

FORMAT = "microturn-dump"
VERSION = 2
HEADER, TICKS, HEARD, SAID, SEEN = "header.json", "ticks.jsonl", "heard.f32", "said.f32", "seen.i16"
MAX_WAITING = 1024


@dataclass(frozen=True)
class Header:
    """What a replay must have the same of.

    shape    the fields of TickShape
    config   the fields of RuntimeConfig
    versions of microturn, python, numpy and torch: bits are promised on equal ones only
    """

    session_id: str
    family: str
    weights: str
    shape: Mapping[str, int]
    config: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    format: str = FORMAT
    version: int = VERSION


class _Files:
    """One session's open files."""

    def __init__(self, folder: Path, header: Header) -> None:
        folder.mkdir(parents=True)
        (folder / HEADER).write_text(json.dumps(dataclasses.asdict(header), indent=1) + "\n")
        self._ticks = (folder / TICKS).open("w", encoding="utf-8")
        self._heard: IO[bytes] = (folder / HEARD).open("wb")
        self._said: IO[bytes] = (folder / SAID).open("wb")
        self._seen: IO[bytes] = (folder / SEEN).open("wb")
        self._sampling: Any = None

    def tick(self, tick: int, row: RowPlan, given: RowInput, made: RowOutput) -> None:
        line: dict[str, Any] = {
            "tick": tick,
            "exec": row.exec,
            "reset": row.reset,
            "rows": [row.n_feedback, row.n_context, row.n_patches, row.n_audio],
            "context": list(given.context_ids),
            "ok": made.ok,
            "text": made.text_ids.tolist(),
            "codes": made.codes.tolist(),
        }
        if given.sampling != self._sampling:
            self._sampling = given.sampling
            line["sampling"] = dataclasses.asdict(given.sampling)
        # Streams first: a line that was written has its samples on disk.
        self._heard.write(given.audio.astype("<f4", copy=False).tobytes())
        self._said.write(made.audio.astype("<f4", copy=False).tobytes())
        self._seen.write(given.patches.astype("<i2", copy=False).tobytes())
        self._ticks.write(json.dumps(line) + "\n")

    def end(self, reason: str) -> None:
        self._ticks.write(json.dumps({"end": reason}) + "\n")
        self.close()

    def flush(self) -> None:
        for file in (self._heard, self._said, self._seen, self._ticks):
            file.flush()

    def close(self) -> None:
        for file in (self._heard, self._said, self._seen, self._ticks):
            file.close()


class DumpWriter:
    """Takes ticks as they happen and writes them from its own thread, `MAX_WAITING` at most
    waiting.

    A disk that cannot keep up costs the recording, never a tick, unless `wait` is set (no clock
    thread runs, so time can wait too): a dump that lost a tick ends there and says so.
    """

    def __init__(self, folder: Path, *, wait: bool) -> None:
        """Raises OSError when the folder cannot be made."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._wait = wait
        self._headers: dict[str, Header] = {}
        self._files: dict[str, _Files] = {}
        self._lost: set[str] = set()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="microturn-dump", daemon=True)
        self._thread.start()

    def open(self, header: Header) -> None:
        """The session's folder, named by its id, is made with its first tick."""
        self._headers[header.session_id] = header

    def forget(self, session_id: str) -> None:
        """The session was refused."""
        self._headers.pop(session_id, None)

    def tick(self, plan: TickPlan, inputs: Mapping[str, RowInput], outputs: TickOutputs) -> None:
        for row in plan.rows:
            if row.session_id in outputs.rows:
                made, given = outputs.rows[row.session_id], inputs[row.session_id]
                self._put_tick(plan.tick, row, given, made)

    def end(self, session_id: str, reason: str) -> None:
        self._jobs.put(lambda: self._end(session_id, reason))

    def close(self) -> None:
        """Writes what waits."""
        self._jobs.put(None)
        self._thread.join()

    def _put_tick(self, tick: int, row: RowPlan, given: RowInput, made: RowOutput) -> None:
        def write() -> None:
            if header := self._headers.pop(row.session_id, None):
                self._files[header.session_id] = _Files(self.folder / header.session_id, header)
            if files := self._files.get(row.session_id):
                files.tick(tick, row, given, made)

        self._put(row.session_id, write)

    def _put(self, session_id: str, job: Callable[[], None]) -> None:
        if session_id in self._lost:
            return
        while self._wait and self._jobs.qsize() >= MAX_WAITING:
            time.sleep(0.001)
        if self._jobs.qsize() >= MAX_WAITING:
            self._lost.add(session_id)
            log.warning("session %s: the disk is too slow, its dump stops here", session_id)
            return
        self._jobs.put(job)

    def _end(self, session_id: str, reason: str) -> None:
        self.forget(session_id)
        files = self._files.pop(session_id, None)
        if files is not None:
            lost = "the recording stopped before the session did; " * (session_id in self._lost)
            files.end(lost + reason)
        self._lost.discard(session_id)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
                if self._jobs.empty():
                    for files in self._files.values():
                        files.flush()
            except OSError:
                log.exception("a dump could not be written")
        for files in self._files.values():
            files.close()
