"""The view while a conversation runs: a panel on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from microturn.runtime.cli.audio import level
from microturn.runtime.cli.report import marks

if TYPE_CHECKING:
    from microturn.runtime import Output

REFRESH_SECONDS = 0.1
BAR_CELLS = 32
TEXT_CELLS = 400
PLAIN_LINES = 5


@dataclass
class Status:
    """What the view shows; the loop that runs the conversation fills it in, tick by tick.

    total_ms is None where the end is not known (a live talk). Levels run from 0 to 1.
    """

    title: str
    tick_ms: int
    untrained: bool
    total_ms: float | None = None
    at_ms: float = 0.0
    heard: float = 0.0
    said: float = 0.0
    step_ms: float = 0.0
    slack_ms: float = 0.0
    text: str = ""
    ticks: int = 0
    misses: int = 0
    pending: int = 0
    marked: int = 0
    extra: str = ""

    def follow(self, output: Output) -> None:
        """Takes one tick in."""
        self.at_ms = output.end_ms
        self.said = level(output.audio)
        self.step_ms, self.slack_ms = output.step_ms, output.slack_ms
        self.text = (self.text + output.text)[-TEXT_CELLS:]
        self.ticks += 1
        self.misses += output.late
        self.pending = output.pending_rows
        self.marked += bool(marks(output))


class View(Protocol):
    """Shows a status; cheap to call every tick."""

    def show(self, status: Status) -> None: ...


@contextmanager
def view(console: Console) -> Iterator[View]:
    """The right view for this console, closed at the end."""
    if not console.is_terminal:
        yield PlainView(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        panel = PanelView(live)
        yield panel
        panel.flush()


class PlainView:
    """A line at each fifth of the run, or every ten seconds where the end is not known."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0

    def show(self, status: Status) -> None:
        if status.at_ms < self._next:
            return
        every = status.total_ms / PLAIN_LINES if status.total_ms else 10_000.0
        self._next = (status.at_ms // every + 1) * every
        self._console.print(
            f"{_position(status)}  step {status.step_ms:.1f} ms  slack {status.slack_ms:.1f} ms  "
            f"misses {status.misses} of {status.ticks}{_tag(status)}",
            highlight=False,
            soft_wrap=True,
        )


class PanelView:
    """A panel redrawn at most every REFRESH_SECONDS."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._drawn = float("-inf")
        self._status: Status | None = None

    def show(self, status: Status) -> None:
        self._status = status
        if time.monotonic() - self._drawn >= REFRESH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Draws what was shown last."""
        if self._status is not None:
            self._drawn = time.monotonic()
            self._live.update(panel(self._status), refresh=True)


def panel(status: Status) -> RenderableType:
    """The status as a panel."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right")
    grid.add_column()
    late = status.slack_ms < 0
    used = min(1.0, max(0.0, 1.0 - status.slack_ms / status.tick_ms))
    grid.add_row("heard", _bar(status.heard, "cyan"))
    grid.add_row("said", _bar(status.said, "yellow"))
    timing = _bar(used, "red" if late else "green")
    timing.append(f"  step {status.step_ms:5.1f} ms   slack {status.slack_ms:6.1f} ms")
    grid.add_row("tick", timing)
    counters = Text(f"{status.ticks} ticks   ")
    counters.append(f"{status.misses} misses", style="bold red" if status.misses else "")
    counters.append(f"   {status.marked} marked   {status.pending} rows waiting")
    if status.extra:
        counters.append(f"   {status.extra}")
    grid.add_row("count", counters)
    words = Text(status.text[-TEXT_CELLS:].strip() or "…", style="bold")
    title = Text(status.title, style="bold not dim")
    if status.untrained:
        title.append("  untrained", style="bold red not dim")
    return Panel(
        Group(grid, Text(), words),
        title=title,
        subtitle=_position(status),
        title_align="left",
        subtitle_align="right",
        border_style="dim",
        padding=(1, 2),
    )


def _bar(level: float, style: str) -> Text:
    cells = round(min(1.0, max(0.0, level)) * BAR_CELLS)
    return Text("█" * cells, style=style).append("·" * (BAR_CELLS - cells), style="dim")


def _position(status: Status) -> str:
    at = f"{status.at_ms / 1000:.1f}"
    return f"{at} s" if status.total_ms is None else f"{at} of {status.total_ms / 1000:.1f} s"


def _tag(status: Status) -> str:
    return "  (untrained)" if status.untrained else ""
