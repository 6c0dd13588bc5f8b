"""Charts of capacity, load and soak: PNG files, drawn from the documents alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KINDS = {"busy": "measured", "fitted": "fitted", "predicted": "foreseen"}
SERIES = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def draw(document: dict[str, Any], path: Path) -> Path:
    """Raises KeyError for another suite's document, OSError."""
    # Not pyplot: it would look for a screen and keep every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    CHARTS[document["suite"]](figure, document["rows"], document["meta"])
    meta = document["meta"]
    preset = document["rows"][0]["case"].split(",")[0]
    title = f"{document['suite']}, {preset}, {meta['device']}, git {meta.get('git')}"
    figure.suptitle(f"{title}, {meta['date'][:10]}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _capacity(figure: Any, rows: Sequence[Row], meta: Row) -> None:
    """Ticks against sessions, as foreseen and as measured, below the period."""
    axes = figure.subplots()
    fast = sorted((r for r in rows if r["clock"] == "fast"), key=lambda r: r["sessions"])
    real = [row for row in rows if row["clock"] == "real"]
    for name, color in (("p50", SERIES[0]), ("p99", SERIES[1])):
        for field, marks in (("busy", "o"), ("fitted", "-"), ("predicted", "x")):
            points = [(r["sessions"], r[f"{field}_ms_{name}"]) for r in fast]
            known = [point for point in points if point[1] is not None]
            if known:
                label = f"{name}, {KINDS[field]}"
                axes.plot(*zip(*known, strict=True), marks, color=color, label=label)
    for row in real:
        axes.plot(
            row["sessions"], row["busy_ms_p99"], "s", color=SERIES[2], label="p99, real clock"
        )
    axes.axhline(_tick_ms(rows), color="grey", linewidth=0.8)
    axes.axvline(meta["capacity"], color=SERIES[2], linewidth=0.8)
    _label(axes, "sessions", "ms of a tick; the line is the period")


def _load(figure: Any, rows: Sequence[Row], meta: Row) -> None:
    """Sessions and ticks by stage."""
    stages = rows[:-1]
    above, below = figure.subplots(2, 1, sharex=True)
    at = list(range(len(stages)))
    above.bar(at, [row["admitted"] for row in stages], color=SERIES[0], label="admitted")
    base = [row["admitted"] for row in stages]
    refused = [row["refused"] for row in stages]
    above.bar(at, refused, bottom=base, color="lightgrey", label="refused")
    above.plot(at, [row["sessions"] for row in stages], "o-", color=SERIES[1], label="most live")
    _label(above, "", "sessions that came")
    for name, color in (("p50", SERIES[0]), ("p99", SERIES[1])):
        values = [row.get(f"took_ms_{name}") for row in stages]
        below.plot(at, values, "o-", color=color, label=f"tick {name}")
    below.axhline(_tick_ms(rows), color="grey", linewidth=0.8)
    for x, row in zip(at, stages, strict=True):
        below.text(x, 0, f"{row['misses']} of {row['ticks']} missed", fontsize=7, ha="center")
    below.set_xticks(at)
    below.set_ylim(bottom=0)
    _label(below, "stage: offered load rises to twice the first", "ms")


def _soak(figure: Any, rows: Sequence[Row], meta: Row) -> None:
    """Steps and memory by minute."""
    minutes = rows[:-1]
    above, below = figure.subplots(2, 1, sharex=True)
    at = list(range(1, len(minutes) + 1))
    for name, color in (("p50", SERIES[0]), ("p99", SERIES[1]), ("max", SERIES[3])):
        field = "step_ms_max" if name == "max" else f"step_ms_{name}"
        above.plot(at, [row.get(field) for row in minutes], "o-", color=color, label=f"step {name}")
    above.axhline(_tick_ms(rows), color="grey", linewidth=0.8)
    above.set_ylim(bottom=0)
    above.xaxis.get_major_locator().set_params(integer=True)
    missed = f"{rows[-1]['misses']} of {rows[-1]['ticks']} ticks missed"
    _label(above, "", f"ms; {missed}")
    below.plot(at, [row["rss_mb"] for row in minutes], "o-", color=SERIES[2], label="process")
    below.set_ylim(0, 1.1 * max(row["rss_mb"] for row in minutes))
    _label(below, "minute", "MB")


CHARTS: dict[str, Callable[[Any, Sequence[Row], Row], None]] = {
    "capacity": _capacity,
    "load": _load,
    "soak": _soak,
}


def _tick_ms(rows: Sequence[Row]) -> float:
    pairs = dict(pair.split("=") for pair in rows[0]["case"].split(","))
    return float(pairs["tick_ms"])


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
