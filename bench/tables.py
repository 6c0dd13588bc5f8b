"""Tables for people, in plain text: they are also read in logs of machines with little on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def show(title: Mapping[str, str], lines: Sequence[Mapping[str, str]], *, left: int = 1) -> None:
    """Prints columns (key -> title) of lines; the first `left` are text, the others numbers."""
    print(table(title, lines, left=left))


def table(title: Mapping[str, str], lines: Sequence[Mapping[str, str]], *, left: int = 1) -> str:
    """What `show` prints."""
    cells = [list(title.values()), *([line.get(key, "") for key in title] for line in lines)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(title))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if index < left else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


OPS_COLUMNS = {
    "what": "op, case, dtype",
    "provider": "by",
    "us": "us p50 [p20-p80]",
    "tb_per_s": "TB/s",
    "tflops": "TFLOP/s",
    "of_floor": "% ceiling",
    "times_peer": "x peer",
    "base": "x base",
    "bar": "bar",
    "ok": "ok",
}


def ops(found: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the ops suite; the reason under those without a time."""
    lines, before = [], None
    columns = dict(OPS_COLUMNS)
    for key, field in (("times_peer", "times_peer"), ("base", "speedup")):
        if not any(field in row for row in found):
            del columns[key]
    for row in found:
        what = f"{row['op']} {row['case']} {row['dtype']}"
        lines.append({"what": "" if what == before else what, **op_line(row)})
        before = what
    show(columns, lines)
    for row in found:
        if row["us_p50"] is None:
            print(f"{row['op']} {row['case']} {row['dtype']} {row['provider']}: {row['note']}")


def op_line(row: Mapping[str, Any]) -> dict[str, str]:
    """One row's cells."""
    line = {"provider": str(row["provider"]), "bar": bar_text(row), "ok": verdict(row)}
    if row["us_p50"] is None:
        return line | {"us": "-"}
    return line | {
        "us": f"{number(row['us_p50'])} [{number(row['us_p20'])}-{number(row['us_p80'])}]",
        "tb_per_s": _or_dash(row.get("tb_per_s"), "{:.3g}"),
        "tflops": _or_dash(row.get("tflops"), "{:.3g}"),
        "of_floor": "-" if row.get("of_floor") is None else f"{100 * row['of_floor']:.1f}",
        "times_peer": _or_dash(row.get("times_peer"), "{:.2f}"),
        "base": _or_dash(row.get("speedup"), "{:.3f}"),
    }


def bar_text(row: Mapping[str, Any]) -> str:
    """ "<= 60 us, >= 78 %"."""
    parts = [
        form.format(scale * row[key])
        for key, form, scale in (
            ("bar_us", "<= {:g} us", 1),
            ("bar_of_floor", ">= {:.0f} %", 100),
            ("bar_tflops", ">= {:g} TFLOP/s", 1),
            ("bar_times_peer", ">= {:g} x", 1),
            ("bar_times_beside", "<= {:g} x without", 1),
        )
        if row.get(key) is not None
    ]
    return ", ".join(parts)


def verdict(row: Mapping[str, Any]) -> str:
    """Of the check first, then of the bar."""
    if row.get("ok") is False:
        return "FAILED"
    if row["us_p50"] is None:
        return "n/a"
    if row.get("meets_bar_net"):
        return "yes, net"
    return {True: "yes", False: "below bar", None: ""}[row.get("meets_bar")]


def number(value: float) -> str:
    """Four figures."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
