"""Charts of the `interactivity` suite: PNG files, drawn from the document and the raw answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from microturn.bench.interactivity.ledger import Answer
from microturn.bench.interactivity.suite import PUBLISHED, WORDS

Row = Mapping[str, Any]
COLOURS = {"microturn": "tab:blue", "harness": "tab:orange", "silent": "tab:gray"}
LATENCY_BAR = 0.4
"""Seconds, the median that is aimed at."""


def draw(document: Mapping[str, Any], answers: Sequence[Answer], folder: Path) -> list[Path]:
    """The charts there is something to draw of. Raises OSError."""
    # Not pyplot: it would look for a screen and keep every figure.
    from matplotlib.figure import Figure

    rows, meta = document["rows"], document["meta"]
    charts: dict[str, Callable[[Any], bool]] = {
        "scores": lambda figure: _scores(figure, rows),
        "conditions": lambda figure: _conditions(figure, rows),
        "latency": lambda figure: _latency(figure, answers),
        "counts": lambda figure: _counts(figure, answers),
    }
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, fill in charts.items():
        figure = Figure(figsize=(10, 5.5), layout="constrained")
        if fill(figure):
            where = f"{meta['device']}, git {meta.get('git')}, {meta['date'][:10]}"
            figure.suptitle(f"{WORDS}\n{where}", fontsize=9)
            made.append(folder / f"{name}.png")
            figure.savefig(made[-1], dpi=120)
    return made


def _fields(row: Row) -> dict[str, str]:
    return dict(part.split("=") for part in row["case"].split(","))


def _scores(figure: Any, rows: Sequence[Row]) -> bool:
    """Clean scores by task and provider with their intervals, the published ones as marks."""
    clean = [row for row in rows if _fields(row)["condition"] == "clean"]
    # By what was heard where somebody listened, by the text stream elsewhere.
    best = {(_fields(r)["task"], r["provider"]): r for r in clean if _fields(r)["scored"] == "text"}
    best |= {
        (_fields(r)["task"], r["provider"]): r for r in clean if _fields(r)["scored"] == "audio"
    }
    tasks = list(dict.fromkeys(task for task, _ in best))
    providers = [name for name in COLOURS if any(name == other for _, other in best)]
    if not tasks:
        return False
    axes = figure.subplots()
    width = 0.8 / len(providers)
    for index, provider in enumerate(providers):
        at = [k - 0.4 + (index + 0.5) * width for k in range(len(tasks))]
        shown = [best.get((task, provider)) for task in tasks]
        drawn = [(x, row) for x, row in zip(at, shown, strict=True) if row is not None]
        scores = [row["score"] for _, row in drawn]
        below = [row["score"] - row["low"] for _, row in drawn]
        above = [row["high"] - row["score"] for _, row in drawn]
        places = [x for x, _ in drawn]
        axes.bar(places, scores, width, color=COLOURS[provider], label=provider)
        axes.errorbar(places, scores, [below, above], fmt="none", ecolor="black", elinewidth=1)
        marks = [
            (x, PUBLISHED[t].of(provider)) for x, t in zip(at, tasks, strict=True) if t in PUBLISHED
        ]
        label = "published, of other systems on other data" if index == 0 else None
        if marks:
            axes.plot(*zip(*marks, strict=True), "D", color="black", mfc="white", ms=5, label=label)
    axes.set_xticks(range(len(tasks)), tasks, rotation=20)
    axes.set_ylabel("score, % (bars: 95 %)")
    axes.set_ylim(0, 105)
    axes.legend(loc="upper right", fontsize=8, framealpha=0.9)
    return True


def _conditions(figure: Any, rows: Sequence[Row]) -> bool:
    """What noise, a room and its own voice cost the model, in points, by task."""
    lost = [row for row in rows if "lost" in row["marks"] and row["provider"] == "microturn"]
    by_audio = [row for row in lost if _fields(row)["scored"] == "audio"]
    lost = by_audio or lost
    if not lost:
        return False
    axes = figure.subplots()
    tasks = list(dict.fromkeys(_fields(row)["task"] for row in lost))
    conditions = list(dict.fromkeys(_fields(row)["condition"] for row in lost))
    for index, condition in enumerate(conditions):
        shown = [row for row in lost if _fields(row)["condition"] == condition]
        at = [tasks.index(_fields(row)["task"]) + 0.2 * (index - 1) for row in shown]
        points = [[100 * value for value in row["marks"]["lost"]] for row in shown]
        middle = [p[0] for p in points]
        sides = [[p[0] - p[1] for p in points], [p[2] - p[0] for p in points]]
        axes.errorbar(at, middle, sides, fmt="o", label=condition)
    axes.axhline(10, color="grey", linewidth=0.8, linestyle="--", label="at most so many")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(tasks)), tasks, rotation=20)
    axes.set_ylabel("points lost against clean (95 %)")
    axes.legend(fontsize=8)
    return True


def _events(answers: Sequence[Answer], name: str) -> dict[str, list[float]]:
    """By provider, all values of a mark in the clean condition; of the audio where there are."""
    found: dict[str, list[float]] = {}
    for answer in answers:
        marks = answer.audio if answer.audio is not None else answer.text
        values = marks.get(name)
        if answer.job.condition == "clean" and isinstance(values, Sequence):
            found.setdefault(answer.provider, []).extend(values)
    return found


def _latency(figure: Any, answers: Sequence[Answer]) -> bool:
    """How soon answers come, as shares of those that came."""
    import numpy as np

    waits = _events(answers, "latency_s_median")
    if not waits:
        return False
    axes = figure.subplots()
    for provider, values in waits.items():
        ordered = np.sort(values)
        shares = np.arange(1, len(ordered) + 1) / len(ordered)
        middle = f"{provider}: median {np.median(ordered):.2f} s of {len(ordered)} answers"
        axes.step(ordered, 100 * shares, where="post", color=COLOURS[provider], label=middle)
    axes.axvline(LATENCY_BAR, color="grey", linewidth=0.8, linestyle="--", label="0.40 s")
    axes.set_xlabel("seconds from the end of a question to the first word")
    axes.set_ylabel("% of answers")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8)
    return True


def _counts(figure: Any, answers: Sequence[Answer]) -> bool:
    """By how much counts are too high."""
    import numpy as np

    errors = _events(answers, "error_median")
    if not errors:
        return False
    axes = figure.subplots()
    width = 0.8 / len(errors)
    for index, (provider, values) in enumerate(errors.items()):
        which, count = np.unique(values, return_counts=True)
        at = which - 0.4 + (index + 0.5) * width
        share = 100 * count / len(values)
        label = f"{provider}: {len(values)} counts"
        axes.bar(at, share, width, color=COLOURS[provider], label=label)
    axes.set_xlabel("repetitions counted minus repetitions shown")
    axes.set_ylabel("% of counts given")
    axes.legend(fontsize=8)
    return True
