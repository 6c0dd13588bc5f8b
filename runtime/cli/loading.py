"""What a person sees while a checkpoint loads: a bar with GB/s on a terminal, else one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


@contextmanager
def loading(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Inside, call what is given with the bytes done and the bytes of all."""
    began, read = time.perf_counter(), [0]
    if not console.is_terminal:
        yield lambda done, total: read.__setitem__(0, done)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            _Gigabytes(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(f"loading {what}", total=None)

            def follow(done: int, total: int) -> None:
                read[0] = done
                progress.update(task, completed=done, total=total)

            yield follow
    if read[0]:
        seconds = max(time.perf_counter() - began, 1e-9)
        console.print(
            f"loaded {what}: {read[0] / 1e9:.2f} GB in {seconds:.1f} s, "
            f"{read[0] / 1e9 / seconds:.2f} GB/s",
            highlight=False,
            soft_wrap=True,
        )


class _Gigabytes(ProgressColumn):
    """ "1.25 of 4.00 GB  2.10 GB/s"."""

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f" of {task.total / 1e9:.2f}"
        speed = 0.0 if task.speed is None else task.speed
        return Text(f"{task.completed / 1e9:.2f}{total} GB  {speed / 1e9:.2f} GB/s")
