"""Figures of a report as inline SVG. Colours are the page's; each says in words what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import log10
from typing import Any

import numpy as np

from microturn.profiling.findings import Loss, Part

WIDTH = 720
LEFT, RIGHT = 130, 20
LEGEND = 170
"""Room for names beside a figure."""


def svg(height: int, title: str, text: str, body: Iterable[str]) -> str:
    """A figure that scales with the page. text: what somebody who does not see it should know."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title><desc>{escape(text)}</desc>{''.join(body)}</svg>"
    )


def waterfall(parts: Sequence[Part], wall: float, period: float) -> str:
    """One row a stretch, where in the tick it lies."""
    row, top = 24, 8
    most = max(wall, period)
    scale = (WIDTH - LEFT - RIGHT - 70) / most
    height = top + row * len(parts) + 40
    body, at = [], 0.0
    for index, part in enumerate(parts):
        x, y = LEFT + at * scale, top + index * row
        width = max(1.0, part.ms * scale)
        body.append(
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(part.name)}</text>'
            f'<rect class="{part.phase}" x="{x:.1f}" y="{y + 3}" width="{width:.1f}" '
            f'height="{row - 8}" rx="2"/>'
            f'<text x="{x + width + 5:.1f}" y="{y + 14}">{part.ms:.2f}</text>'
        )
        at += part.ms
    for ms, name in ((period, f"period {period:g} ms"), (wall, f"tick {wall:.1f} ms")):
        x = LEFT + ms * scale
        y = height - (24 if ms == period else 8)
        body.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{y - 10}"/>'
            f'<text x="{x:.1f}" y="{y}" text-anchor="end">{name}</text>'
        )
    longest = max(parts, key=lambda part: part.ms)
    text = f"{len(parts)} stretches fill {at:.1f} ms; the longest is {longest.name}."
    return svg(height, "Where the mean tick goes, in ms", text, body)


def histogram(values: Sequence[float], title: str, unit: str, zero: str) -> str:
    """How often each value was seen. zero: what the line at 0 means."""
    found = np.asarray(values, np.float64)
    bins = int(min(40, max(5, round(len(found) ** 0.5))))
    low, high = min(0.0, float(found.min())), max(0.0, float(found.max()))
    counts, edges = np.histogram(found, bins=bins, range=(low, high if high > low else low + 1))
    height, base = 220, 180
    scale = (WIDTH - LEFT - RIGHT) / (edges[-1] - edges[0])
    tallest = max(1, int(counts.max()))
    body = []
    for count, start, end in zip(counts, edges, edges[1:], strict=False):
        if not count:
            continue
        x, tall = LEFT + (start - edges[0]) * scale, (base - 20) * count / tallest
        kind = "late" if end <= 1e-9 else "step"
        body.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{base - tall:.1f}" '
            f'width="{max(1.0, (end - start) * scale - 1):.1f}" height="{tall:.1f}"/>'
        )
    for value, name in ((low, f"{low:.1f}"), (high, f"{high:.1f} {unit}")):
        if value:
            body.append(_below(LEFT + (value - edges[0]) * scale, base + 18, name))
    x = LEFT - edges[0] * scale
    body.append(
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{base}"/>'
        f'<text x="{LEFT - 8}" y="24" text-anchor="end">{tallest} ticks</text>'
    )
    body.append(_below(x, base + 34, zero))
    text = f"From {found.min():.1f} to {found.max():.1f} {unit}, median {np.median(found):.1f}."
    return svg(height, title, text, body)


def _below(x: float, y: float, words: str) -> str:
    """Words under a place on the axis, within the figure."""
    anchor = "end" if x > WIDTH - 80 else "middle"
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def roofline(losses: Sequence[Loss], ceilings: dict[str, Any]) -> str:
    """Every op with bytes and flops: flops a byte against GFLOP/s, under the roof. Numbered as the
    losses are sorted.
    """
    points = [
        (loss.op, loss.flops / loss.bytes, loss.flops / loss.ms / 1e6)
        for loss in losses
        if loss.bytes and loss.flops and loss.ms
    ]
    peak, read = 1000 * ceilings["tflops"], ceilings["read_gbps"]
    if not points:
        return ""
    ridge = peak / read
    xs = [log10(x) for _, x, _ in points] + [log10(ridge)]
    ys = [log10(y) for _, _, y in points] + [log10(peak)]
    x0, x1, y0, y1 = min(xs) - 0.3, max(xs) + 0.5, min(ys) - 0.3, max(ys) + 0.3
    height, right = max(380, 30 + 17 * len(points)), WIDTH - LEGEND

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (log10(x) - x0) / (x1 - x0) * (right - LEFT)
        return across, 340 - (log10(y) - y0) / (y1 - y0) * 320

    start = at(10**x0, max(10**y0, read * 10**x0))
    if read * 10**x0 < 10**y0:
        start = at(10**y0 / read, 10**y0)
    corner, end = at(ridge, peak), at(10**x1, peak)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (start, corner, end))
    body = [f'<polyline class="roof" points="{line}"/>']
    body.append(
        f'<text x="{right}" y="{corner[1] - 6:.1f}" text-anchor="end">'
        f"{peak:g} GFLOP/s</text>"
        f'<text x="{LEFT - 8}" y="{start[1]:.1f}" text-anchor="end">{read:g} GB/s</text>'
        f'<text x="{right}" y="372" text-anchor="end">flops a byte</text>'
        f'<text x="{LEFT - 8}" y="24" text-anchor="end">GFLOP/s</text>'
    )
    for number, (name, x, y) in enumerate(points, 1):
        px, py = at(x, y)
        body.append(
            f'<circle class="step" cx="{px:.1f}" cy="{py:.1f}" r="4"/>'
            f'<text x="{px + 6:.1f}" y="{py - 4:.1f}">{number}</text>'
            f'<text x="{right + 16}" y="{14 + 17 * number}">{number} {escape(name)}</text>'
        )
    text = "; ".join(f"{n}: {x:.2g} flops a byte, {y:.3g} GFLOP/s" for n, x, y in points)
    return svg(height, "Roofline at the ceilings measured in this run", text, body)


def levels(found: Sequence[dict[str, Any]], period: float) -> str:
    """Ticks at every number of sessions: dots are measured, lines fitted, crosses predicted before.
    "" where nothing was swept.
    """
    if not found:
        return ""
    kinds = [
        f"{kind}_ms_{p}" for kind in ("measured", "fitted", "predicted") for p in ("p50", "p99")
    ]
    most = 1.1 * max(period, *(level[kind] or 0 for level in found for kind in kinds))
    right, base = WIDTH - LEGEND, 290
    step = (right - LEFT) / len(found)
    xs = [LEFT + step * (index + 0.5) for index in range(len(found))]

    def y(ms: float) -> float:
        return base - ms / most * (base - 10)

    body = [
        f'<line class="mark" x1="{LEFT}" x2="{right}" y1="{y(period):.1f}" y2="{y(period):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(period) + 4:.1f}" text-anchor="end">{period:g} ms</text>'
        f'<text x="{LEFT - 8}" y="{base + 4}" text-anchor="end">0</text>'
        f'<text x="{right}" y="{base + 36}" text-anchor="end">sessions</text>'
    ]
    body += [_below(x, base + 18, str(n["sessions"])) for x, n in zip(xs, found, strict=True)]
    for row, (p, kind) in enumerate((("p50", "step"), ("p99", "emit"))):
        lines = [(x, n[f"fitted_ms_{p}"]) for x, n in zip(xs, found, strict=True)]
        points = " ".join(f"{x:.1f},{y(ms):.1f}" for x, ms in lines if ms is not None)
        body.append(f'<polyline class="line-{kind}" points="{points}"/>')
        for x, level in zip(xs, found, strict=True):
            at, before = y(level[f"measured_ms_{p}"]), level[f"predicted_ms_{p}"]
            body.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{at:.1f}" r="4"/>')
            if before is not None:
                body.append(_cross(x, y(before), kind))
        for part, what in enumerate(("measured", "fitted", "predicted before")):
            side, top = right + 24, 24 + 72 * row + 20 * part
            marks = (
                f'<circle class="{kind}" cx="{side}" cy="{top - 4}" r="4"/>',
                _flat(side, top - 4, kind),
                _cross(side, top - 4, kind),
            )
            body.append(f'{marks[part]}<text x="{side + 14}" y="{top}">{p} {what}</text>')
    text = "; ".join(
        f"{n['sessions']} sessions: p50 {n['measured_ms_p50']:.1f}, p99 {n['measured_ms_p99']:.1f}"
        for n in found
    )
    return svg(base + 44, "Ticks at every number of sessions, in ms", text, body)


def _flat(x: float, y: float, kind: str) -> str:
    return f'<polyline class="line-{kind}" points="{x - 7},{y} {x + 7},{y}"/>'


def _cross(x: float, y: float, kind: str) -> str:
    return (
        f'<line class="line-{kind}" x1="{x - 5:.1f}" x2="{x + 5:.1f}" y1="{y - 5:.1f}" '
        f'y2="{y + 5:.1f}"/><line class="line-{kind}" x1="{x - 5:.1f}" x2="{x + 5:.1f}" '
        f'y1="{y + 5:.1f}" y2="{y - 5:.1f}"/>'
    )


def strip(samples: Sequence[dict[str, Any]]) -> str:
    """Power and clock of a GPU over the run; "" where there are fewer than two samples."""
    if len(samples) < 2:
        return ""
    last = samples[-1]["at_ms"] or 1.0
    body, height = [], 200
    for index, (name, unit, kind) in enumerate(
        (("power_w", "W", "step"), ("sm_mhz", "MHz", "emit"))
    ):
        top, most = 10 + 95 * index, max(s[name] for s in samples) or 1
        points = " ".join(
            f"{LEFT + s['at_ms'] / last * (WIDTH - LEFT - RIGHT):.1f},"
            f"{top + 70 - 70 * s[name] / most:.1f}"
            for s in samples
        )
        body.append(
            f'<polyline class="line-{kind}" points="{points}"/>'
            f'<text x="{LEFT - 8}" y="{top + 14}" text-anchor="end">{most:.0f} {unit}</text>'
        )
    held = sorted({reason for s in samples for reason in s["held_back_by"]})
    text = f"{len(samples)} samples; clocks held back by: {', '.join(held) or 'nothing'}."
    body.append(_below(WIDTH - RIGHT, 190, f"{last / 1000:.1f} s; {text}"))
    return svg(height, "Power and clock of the GPU", text, body)
