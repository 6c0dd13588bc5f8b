"""Scenes shared out among processes: each makes its scenes, plays and scores them by itself."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microturn.bench.interactivity.ledger import Answer
from microturn.bench.interactivity.page import Page, Played
from microturn.bench.interactivity.players import Job, Player
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scoring import score
from microturn.bench.interactivity.speech import Audio, Word

Ear = Callable[[Audio], tuple[Word, ...]]


@dataclass(frozen=True)
class Work:
    """How jobs become answers. audio: also what a recogniser hears; listen: a folder for clips."""

    player: Player
    audio: bool = True
    listen: Path | None = None

    def answers(self, jobs: Iterable[Job]) -> Iterator[Answer]:
        """In this process, as they come."""
        ear = _ear() if self.audio else None
        page = Page(self.listen) if self.listen is not None else None
        for job, scene, reply in self.player.play(jobs):
            heard = None if ear is None or reply.audio is None else ear(reply.audio)
            listened = None if heard is None else score(scene, Reply(heard, reply.audio))
            if page is not None:
                page.add(self.player.name, job, Played(scene, reply, heard))
            text = score(scene, reply)
            yield Answer(self.player.name, job, text, reply.words, listened, heard)

    def shared(self, jobs: Sequence[Job], workers: int) -> Iterator[Answer]:
        """The same answers from `workers` processes, in any order. Raises RuntimeError with what
        went wrong in one of them.
        """
        workers = min(workers, len(jobs))
        if workers <= 1:
            yield from self.answers(jobs)
            return
        context = multiprocessing.get_context("spawn")
        waiting, done = context.Queue(), context.Queue()
        for job in (*jobs, *[None] * workers):
            waiting.put(job)
        crew = [
            context.Process(target=_labour, args=(self, waiting, done), daemon=True)
            for _ in range(workers)
        ]
        for process in crew:
            process.start()
        try:
            for _ in jobs:
                found = _next(done, crew)
                if isinstance(found, str):
                    raise RuntimeError(f"a worker failed: {found}")
                yield found
        finally:
            for process in crew:
                process.kill()
                process.join()


def _next(done: Any, crew: Sequence[Any]) -> Answer | str:
    while True:
        try:
            found: Answer | str = done.get(timeout=1.0)
            return found
        except queue.Empty:
            if lost := [process.exitcode for process in crew if process.exitcode]:
                return f"it ended with code {lost[0]}"


def _labour(work: Work, waiting: Any, done: Any) -> None:
    try:
        for answer in work.answers(iter(waiting.get, None)):
            done.put(answer)
    except Exception:
        done.put(traceback.format_exc())


def _ear() -> Ear:
    from microturn.bench.interactivity.recogniser import Recogniser
    from microturn.bench.interactivity.vocabulary import SPOKEN

    return Recogniser(SPOKEN).hear
