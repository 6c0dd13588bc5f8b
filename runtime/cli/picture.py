"""REPLY.png: what was seen and heard, what was said and when, and the time each tick had left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.cli.audio import Samples
from microturn.runtime.cli.events import TimedText
from microturn.runtime.cli.report import TickRecord, Word, words
from microturn.runtime.cli.video import TimedFrame

INK, SOFT, FAINT = "#22272e", "#6b7480", "#dfe3e8"
HEARD, SAID, TOLD, SEEN = "#47698c", "#b3592e", "#7a5c99", "#8a7a2f"
SLACK, MISS = "#5f8f7f", "#c2332b"
COLUMNS = 1800
WORD_ROWS = 6
FEW_WORDS = 60


@dataclass(frozen=True)
class Picture:
    """Everything the figure shows.

    heard, said  mono fp32 at heard_rate, said_rate, both from time 0
    records      one a tick
    told         context text given during the run
    seen         frames, none for a run without video
    title, subtitle, warning   warning is empty for trained weights
    """

    heard: Samples
    heard_rate: int
    said: Samples
    said_rate: int
    records: Sequence[TickRecord]
    told: Sequence[TimedText]
    seen: Sequence[TimedFrame]
    title: str
    subtitle: str
    warning: str


def draw(picture: Picture, path: Path) -> None:
    """Writes the figure as PNG, 2080 x 1200 pixels."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": SOFT,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "text.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(13, 7.5), dpi=160, facecolor="white")
        FigureCanvasAgg(figure)
        heights = (1.7, 2.6, 2.2, 2.6, 2.2) if picture.seen else (3, 2.2, 3, 2.4)
        grid = figure.add_gridspec(
            len(heights), 1, height_ratios=heights, left=0.075, right=0.975, top=0.875, bottom=0.075
        )
        grid.update(hspace=0.12)
        first = figure.add_subplot(grid[len(heights) - 4])
        axes = [
            first,
            *(figure.add_subplot(grid[i - 4 + len(heights)], sharex=first) for i in (1, 2, 3)),
        ]
        end = max(
            len(picture.heard) / picture.heard_rate,
            len(picture.said) / picture.said_rate,
            picture.seen[-1].at_ms / 1000 if picture.seen else 0.0,
            1e-3,
        )
        first.set_xlim(0, end)
        _titles(figure, picture)
        _waveform(axes[0], picture.heard, picture.heard_rate, HEARD, "heard", end)
        _told(axes[0], picture.told, end)
        _waveform(axes[2], picture.said, picture.said_rate, SAID, "said", end)
        _slack(axes[3], picture)
        for axis in axes[:3]:
            axis.tick_params(axis="x", length=0, labelbottom=False)
        axes[3].set_xlabel("seconds from the start of the input")
        if picture.seen:
            strip = figure.add_subplot(grid[0], sharex=first)
            _strip(figure, strip, picture.seen, end)
            axes.append(strip)
        figure.align_ylabels(axes)
        _words(figure, axes[1], words(picture.records), end)
        figure.savefig(path, metadata={"Title": picture.title, "Description": picture.subtitle})


def envelope(samples: Samples, columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest sample of each of `columns` equal spans (fewer when samples are fewer)."""
    columns = max(1, min(columns, len(samples)))
    if not len(samples):
        return np.zeros(1, np.float32), np.zeros(1, np.float32)
    starts = np.linspace(0, len(samples), columns, endpoint=False).astype(np.int64)
    return np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)


def pack(spans: Sequence[tuple[float, float]], rows: int, gap: float) -> list[int | None]:
    """A row for each (left, width), by left edge, no two overlapping; None where all are taken."""
    free = [-float("inf")] * rows
    placed: list[int | None] = []
    for left, width in spans:
        row = next((r for r in range(rows) if free[r] + gap <= left), None)
        if row is not None:
            free[row] = left + width
        placed.append(row)
    return placed


def _titles(figure: Any, picture: Picture) -> None:
    figure.text(0.075, 0.952, picture.title, fontsize=15, fontweight="bold", va="center")
    figure.text(0.075, 0.912, picture.subtitle, fontsize=9.5, color=SOFT, va="center")
    if picture.warning:
        figure.text(
            0.975,
            0.952,
            picture.warning,
            fontsize=9.5,
            color=MISS,
            va="center",
            ha="right",
            bbox={"boxstyle": "round,pad=0.45", "fc": "#fbeeed", "ec": "#e9bcb9", "lw": 0.8},
        )


def _waveform(axis: Any, samples: Samples, rate: int, color: str, name: str, end: float) -> None:
    low, high = envelope(samples, COLUMNS)
    seconds = np.linspace(0, len(samples) / rate, len(low), endpoint=False)
    axis.axhline(0, color=FAINT, lw=0.8, zorder=0)
    axis.fill_between(seconds, low, high, color=color, lw=0.3, step="post")
    peak = float(np.abs(samples).max()) if len(samples) else 0.0
    limit = max(0.02, peak * 1.12)
    axis.set_ylim(-limit, limit)
    axis.set_yticks([-peak, 0, peak] if peak > 1e-4 else [0])
    axis.set_yticklabels([f"{-peak:.2f}", "0", f"{peak:.2f}"] if peak > 1e-4 else ["0"], fontsize=8)
    axis.set_ylabel(name, fontsize=11, color=color, fontweight="bold")
    axis.spines["bottom"].set_visible(False)
    if len(samples) / rate < end - 1e-3:
        axis.text(
            (len(samples) / rate + end) / 2,
            limit * 0.08,
            "end of input" if len(samples) else "silence",
            fontsize=8,
            color=SOFT,
            ha="center",
            va="bottom",
        )


def _strip(figure: Any, axis: Any, seen: Sequence[TimedFrame], end: float) -> None:
    """As many frames as stand side by side, each beginning at its time; a mark for every frame."""
    axis.set_ylim(-0.12, 1)
    axis.set_autoscale_on(False)
    axis.set_yticks([])
    axis.tick_params(axis="x", length=0, labelbottom=False)
    axis.set_ylabel("seen", fontsize=11, color=SEEN, fontweight="bold")
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    box = axis.get_window_extent(figure.canvas.get_renderer())
    seconds_per_height = end * (box.height / 1.12) / box.width
    free = -1.0
    for frame in seen:
        at = frame.at_ms / 1000
        axis.vlines(at, -0.12, -0.04, color=SEEN, lw=0.8)
        height, width = frame.pixels.shape[:2]
        wide = seconds_per_height * width / height
        if at < free or at + wide > end * 1.001:
            continue
        axis.imshow(
            frame.pixels, extent=(at, at + wide, 0, 1), aspect="auto", interpolation="antialiased"
        )
        free = at + wide * 1.03


def _told(axis: Any, told: Sequence[TimedText], end: float) -> None:
    top = axis.get_ylim()[1]
    for event in told:
        at = event.at_ms / 1000
        if at > end:
            continue
        axis.axvline(at, color=TOLD, lw=1.0, ls=(0, (3, 2)))
        text = event.text if len(event.text) <= 48 else event.text[:47] + "…"
        late = at > 0.7 * end
        axis.annotate(
            f"{'told to say' if event.speak else 'told'}: {text}",
            (at, top),
            xytext=(-4 if late else 4, -2),
            textcoords="offset points",
            fontsize=8,
            color=TOLD,
            va="top",
            ha="right" if late else "left",
            bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
        )


def _words(figure: Any, axis: Any, said: Sequence[Word], end: float) -> None:
    axis.set_ylim(WORD_ROWS, -0.6)
    axis.set_yticks([])
    axis.set_ylabel("words", fontsize=11, fontweight="bold", color=INK)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    if not said:
        axis.text(end / 2, WORD_ROWS / 2, "no words", color=SOFT, ha="center", va="center")
        return
    size = 10 if len(said) <= FEW_WORDS else 8
    axis.vlines([word.ms / 1000 for word in said], -0.6, -0.1, color=SAID, lw=0.7, alpha=0.8)
    labels = [axis.text(word.ms / 1000, 0, word.text, fontsize=size, va="center") for word in said]
    renderer = figure.canvas.get_renderer()
    scale = end / axis.get_window_extent(renderer).width
    widths = [label.get_window_extent(renderer).width * scale for label in labels]
    spans = [(word.ms / 1000, width) for word, width in zip(said, widths, strict=True)]
    hidden = 0
    for label, (left, width), row in zip(
        labels, spans, pack(spans, WORD_ROWS, 10 * scale), strict=True
    ):
        if row is None or left + width > end:
            label.remove()
            hidden += 1
            continue
        label.set_y(row + 0.5)
        axis.plot([left, left], [-0.1, row + 0.8], color=FAINT, lw=0.7, zorder=0)
        label.set_x(left + 2 * scale)
    if hidden:
        axis.annotate(
            f"{len(said)} words, {hidden} of them without room here: see the JSON",
            (1, 0),
            xycoords="axes fraction",
            xytext=(0, -1),
            textcoords="offset points",
            fontsize=7.5,
            color=SOFT,
            ha="right",
            va="top",
        )


def _slack(axis: Any, picture: Picture) -> None:
    axis.axhline(0, color=MISS, lw=1.1, zorder=3)
    axis.set_ylabel("slack, ms", fontsize=11, color=SLACK, fontweight="bold")
    axis.spines["bottom"].set_visible(False)
    if not picture.records:
        return
    left = np.array([record.start_ms for record in picture.records]) / 1000
    width = np.array([record.end_ms - record.start_ms for record in picture.records]) / 1000
    slack = np.array([record.slack_ms for record in picture.records])
    axis.bar(
        left,
        slack,
        width * 0.82,
        align="edge",
        color=[MISS if value < 0 else SLACK for value in slack],
        alpha=0.85,
        lw=0,
    )
    period = float(picture.records[0].end_ms - picture.records[0].start_ms)
    axis.set_ylim(min(-0.12 * period, float(slack.min()) * 1.15), period * 1.22)
    axis.axhline(period, color=FAINT, lw=0.8, zorder=0)
    misses = int((slack < 0).sum())
    axis.text(
        0.0,
        1.0,
        f"deadline minus output ready: lowest {slack.min():.0f} ms, median "
        f"{np.median(slack):.0f} ms, {misses} of {len(slack)} ticks missed the deadline",
        transform=axis.transAxes,
        fontsize=8,
        color=SOFT,
        va="top",
    )
    axis.annotate(
        "deadline",
        (1, 0),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -3),
        textcoords="offset points",
        fontsize=8,
        color=MISS,
        ha="right",
        va="top",
    )
