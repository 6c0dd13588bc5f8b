"""Measures in a process of its own, which is started again when a kernel takes it down."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from microturn.bench import rows
from microturn.bench.rows import Row
from microturn.bench.subjects import Item
from microturn.runtime.ceilings import Ceilings

START_SECONDS = 180.0
ITEM_SECONDS = 120.0
"""After which a kernel is taken to hang."""


class WorkerFailed(RuntimeError):
    """The process did not come up. The text holds the end of what it wrote."""


class Worker:
    """A `bench.worker`. Closes with `with`.

    root       where microturn is taken from: a folder with `microturn/` inside; None: as here
    kernels    the tree whose kernels must then be used
    ceilings   known already; None: measured at the start
    """

    def __init__(
        self,
        device: str,
        *,
        seconds: float | None = None,
        seed: int = 0,
        root: Path | None = None,
        kernels: Path | None = None,
        ceilings: Ceilings | None = None,
        item_seconds: float = ITEM_SECONDS,
    ) -> None:
        self.item_seconds = item_seconds
        self.ceilings = ceilings
        self.overhead: dict[str, float] = {}
        self._start = {
            "device": device,
            "seconds": seconds,
            "seed": seed,
            "root": None if kernels is None else str(kernels),
        }
        self._environment = dict(os.environ)
        if root is not None:
            self._environment["PYTHONPATH"] = str(root)
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._up()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._down()

    def measure(self, item: Item, providers: Sequence[str]) -> Iterator[Row]:
        """A row of each provider that supports the item; one that took the process down, or did
        not come back, has a null row.
        """
        left = list(providers)
        while left:
            if self._process is None:
                self._up()
            self._send({"item": list(item), "providers": left})
            current, why = None, ""
            while not why:
                answer = self._receive(self.item_seconds)
                if "row" in answer:
                    yield answer["row"]
                elif "begin" in answer:
                    current = answer["begin"]
                elif "done" in answer:
                    return
                elif "refused" in answer:
                    yield rows.null(item, left[0], answer["refused"], None)
                    return
                else:
                    why = answer["lost"]
            self._down()
            # Nobody had begun: the inputs themselves cannot be made.
            yield rows.null(item, current or left[0], why, False)
            left = [] if current is None else left[left.index(current) + 1 :]

    def _up(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "microturn.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=self._environment,
        )
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        given = None if self.ceilings is None else self.ceilings.as_json()
        self._send({**self._start, "ceilings": given})
        answer = self._receive(START_SECONDS)
        if "ready" not in answer:
            self._down()
            raise WorkerFailed(str(answer.get("refused") or answer["lost"]))
        self.ceilings = Ceilings(**answer["ready"]["ceilings"])
        self.overhead = self.overhead or answer["ready"]["overhead"]

    def _down(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was not yet sent to a dead process
        self._process = None

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it is dead: the next `_receive` says of what

    def _receive(self, seconds: float) -> dict[str, Any]:
        """Its next reply; `lost` when it is dead or silent."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return {"lost": f"no answer in {seconds:.0f} s: hangs, or waits for a grid barrier"}
        if line is None:
            return {"lost": f"the process died: {self._last_words()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        assert self._process is not None and self._log is not None
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return f"exit code {code}; {' | '.join(lines[-3:])[-600:]}"


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)
