"""Charts of documents: PNG files a person can read beside the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from microturn.bench import system_charts
from microturn.bench.rows import NOT_PEERS, OURS, Row
from microturn.bench.schema import SchemaError, validate

HEIGHT = 0.24
"""Inches a bar."""


def committed() -> list[Path]:
    """Every document under bench/results that there are charts of."""
    folder = Path(__file__).resolve().parent / "results"
    return [path for path in sorted(folder.glob("*/*.json")) if _has_charts(path)]


def _has_charts(path: Path) -> bool:
    document = json.loads(path.read_text("utf-8"))
    of_ops = any(row.get("of_floor") is not None for row in document["rows"])
    return of_ops or document["suite"] in system_charts.CHARTS


def draw(paths: Iterable[Path], out: Path | None = None) -> list[Path]:
    """The charts of each document, beside it or in `out`. Raises OSError, and ValueError for what
    is no document with op rows.
    """
    drawn = []
    for path in paths:
        try:
            document = json.loads(path.read_text("utf-8"))
            validate(document)
        except (json.JSONDecodeError, SchemaError) as error:
            raise ValueError(f"{path}: {error}") from None
        folder = path.parent if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{path.parent.name}_{path.stem}" if out is not None else path.stem
        if document["suite"] in system_charts.CHARTS:
            drawn.append(system_charts.draw(document, folder / f"{stem}.png"))
        drawn += _draw(document, folder, stem)
    if not drawn:
        raise ValueError(
            "nothing to draw: no document has measured op rows, or is of capacity, load or soak"
        )
    return drawn


def _draw(document: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    timed = [row for row in document["rows"] if row.get("of_floor") is not None]
    drawn = []
    if timed:
        drawn.append(_floors(document["meta"], timed, folder / f"{stem}_of_floor.png"))
    if any(row["provider"] not in NOT_PEERS for row in timed):
        drawn.append(_speedups(document["meta"], timed, folder / f"{stem}_times_peer.png"))
    return drawn


def _floors(meta: dict[str, Any], timed: Sequence[Row], path: Path) -> Path:
    """A group of bars a case, a bar a provider: percent of its floor, and the bar it has to
    reach.
    """
    providers = _providers(timed)
    cases = _cases(timed)
    figure, axes = _figure(len(timed) + len(cases))
    at, ticks, titles = 0.0, [], []
    for case in cases:
        here = [row for row in timed if _case(row) == case]
        for k, row in enumerate(here):
            axes.barh(at + k, 100 * row["of_floor"], color=_color(providers, row["provider"]))
            axes.text(100 * row["of_floor"] + 0.5, at + k, _us(row), va="center", fontsize=6)
            if row.get("bar_of_floor") is not None:
                axes.plot([100 * row["bar_of_floor"]] * 2, [at + k - 0.5, at + k + 0.5], "k-")
        ticks.append(at + (len(here) - 1) / 2)
        titles.append(case)
        at += len(here) + 1
    _finish(axes, ticks, titles, "percent of the floor (bytes or flops at the ceiling)", meta)
    axes.axvline(100, color="grey", linewidth=0.8)
    return _save(figure, axes, providers, path)


def _speedups(meta: dict[str, Any], timed: Sequence[Row], path: Path) -> Path:
    """How many times faster than each peer."""
    ours = {_case(row): row for row in timed if row["provider"] == OURS}
    pairs = [
        (row, row["us_p50"] / ours[_case(row)]["us_p50"])
        for row in timed
        if row["provider"] not in NOT_PEERS and _case(row) in ours
    ]
    providers = _providers([row for row, _ in pairs])
    figure, axes = _figure(max(1, len(pairs)))
    for k, (row, times) in enumerate(pairs):
        axes.barh(k, times, color=_color(providers, row["provider"]))
        axes.text(times, k, f" {times:.2f} x", va="center", fontsize=6)
    titles = [_case(row) for row, _ in pairs]
    _finish(axes, list(range(len(pairs))), titles, "times faster than the peer", meta)
    axes.axvline(1, color="grey", linewidth=0.8)
    return _save(figure, axes, providers, path)


def _case(row: Row) -> str:
    return f"{row['op']} {row['case']} {row['dtype']}"


def _cases(timed: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(_case(row) for row in timed))


def _providers(timed: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["provider"] for row in timed))


def _us(row: Row) -> str:
    return f"{row['us_p50']:.4g} us"


def _color(providers: Sequence[str], provider: str) -> Any:
    import matplotlib

    return matplotlib.colormaps["tab20"](providers.index(provider) % 20)


def _figure(bars: int) -> tuple[Any, Any]:
    # Not pyplot: it would look for a screen and keep every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.5 + HEIGHT * bars), layout="constrained")
    return figure, figure.subplots()


def _finish(
    axes: Any, ticks: Sequence[float], titles: Sequence[str], label: str, meta: dict[str, Any]
) -> None:
    axes.set_yticks(ticks, titles, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_title(f"{meta['device']}, git {meta.get('git')}, {meta['date'][:10]}", fontsize=9)
    axes.margins(y=0.01)


def _save(figure: Any, axes: Any, providers: Sequence[str], path: Path) -> Path:
    from matplotlib.patches import Patch

    patches = [Patch(color=_color(providers, name), label=name) for name in providers]
    axes.legend(handles=patches, fontsize=7, loc="lower right")
    figure.savefig(path, dpi=120)
    return path
