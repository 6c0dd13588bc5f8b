"""The tables of a report as plain cells: one source for HTML and Markdown."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from microturn.profiling.document import PHASES, Profile
from microturn.profiling.findings import NEAR, losses, middle, predictions, told


class Table(NamedTuple):
    """The first column names the row; all others are numbers or short words."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def phases(profile: Profile) -> Table:
    rows = []
    for name in ("wall", *PHASES, "model", "wake", "slack"):
        ms = profile["ticks"][name]
        found = np.percentile(ms, (50, 90, 99, 100), method="inverted_cdf")
        rows.append((name, *(f"{value:.3f}" for value in found)))
    note = (
        "ms of a tick. model: the tick program within step; wake: after the tick was due; slack: "
        "before its deadline, negative is late."
    )
    return Table("Phases", note, ("phase", "p50", "p90", "p99", "max"), tuple(rows))


def ops(profile: Profile) -> Table:
    rows = []
    for loss in losses(profile):
        floor = "" if loss.floor_ms is None else f"{loss.floor_ms:.3f}"
        of_floor = "" if loss.of_floor is None else f"{loss.of_floor:.0%}"
        rows.append(
            (
                loss.op,
                str(loss.calls),
                f"{loss.ms:.3f}",
                floor,
                f"{loss.lost_ms:.3f}",
                of_floor,
                loss.binds,
            )
        )
    note = (
        "Sorted by the time lost against the floor: bytes and flops of the cases at the ceilings "
        "of this run. A fraction of the floor is no claim where a case's bytes stay in a cache."
    )
    head = ("op", "calls", "ms", "floor ms", "lost ms", "of floor", "binds")
    return Table("Ops by time lost", note, head, tuple(rows))


def lines(profile: Profile) -> Table:
    chosen = middle(profile)
    found = [
        (float(np.mean(np.array(line["ms"])[chosen])) - (line["floor_ms"] or 0.0), line)
        for line in profile["lines"]
    ]
    rows = []
    for lost, line in sorted(found, key=lambda item: -item[0]):
        calls = line["torch_calls"]
        rows.append(
            (
                f"{line['part']}: {line['op']}" if line["part"] else line["op"],
                str(line["calls"]),
                f"{np.mean(np.array(line['ms'])[chosen]):.3f}",
                "" if line["floor_ms"] is None else f"{line['floor_ms']:.4f}",
                f"{lost:.3f}",
                "" if line["bytes"] is None else f"{line['bytes'] / 1e6:.3f}",
                "" if line["flops"] is None else f"{line['flops'] / 1e6:.3f}",
                "" if calls is None else f"{calls:g}",
            )
        )
    head = ("part: op", "calls", "ms", "floor ms", "lost ms", "MB", "MFLOP", "torch calls")
    note = "torch calls: of the op in the whole tick, counted under torch's profiler."
    return Table("Parts and ops", note, head, tuple(rows))


def levels(profile: Profile) -> Table:
    def ms(level: dict[str, float | None], name: str) -> str:
        value = level[name]
        return "" if value is None else f"{value:.1f}"

    kinds = ("measured", "fitted", "predicted")
    names = [f"{kind}_ms_{p}" for kind in kinds for p in ("p50", "p99")]
    verdicts = {
        kind: {t.sessions: t for t in told(profile, kind)} for kind in ("fitted", "predicted")
    }
    rows = []
    for level in profile["levels"]:
        found = [by.get(level["sessions"]) for by in verdicts.values()]
        says = ("" if t is None else f"{t.off:+.0%}, {t.over:+.0%}" for t in found)
        holds = ("" if t is None else "yes" if t.holds else "no" for t in found)
        each = (cell for pair in zip(says, holds, strict=True) for cell in pair)
        numbers = (ms(level, name) for name in names)
        rows.append((str(level["sessions"]), str(level["ticks"]), *numbers, *each))
    capacity = profile["capacity"]
    note = " ".join(
        (
            "ms from a tick's beginning until its outputs were out, of ticks held out. fitted: to "
            "the other ticks of all numbers; predicted: before that number was measured; off: at "
            f"p50, p99. Holds: p50 within {NEAR:.0%}, p99 not below.",
            *predictions(profile),
            f"The capacity line is {capacity['sessions']} sessions ({capacity['mark']}), with a "
            f"margin of {capacity['margin_ms']:g} ms.",
        )
    )
    head = ["sessions", "ticks", *(name.replace("_ms_", " ") for name in names)]
    for kind in verdicts:
        head += [f"{kind} off", "holds"]
    return Table("Sessions: measured and predicted", note, tuple(head), tuple(rows))


def environment(profile: Profile) -> Table:
    overhead = profile["overhead"]
    share = overhead["share"]
    facts = {
        "case": profile["case"],
        "weights": "untrained" if profile["untrained"] else "trained",
        "device": profile["device"],
        "torch threads": profile["threads"],
        "load of the machine, 1 min": profile["load_1min"],
        "date": profile["date"],
        "git": profile["git"],
        "ticks": len(profile["ticks"]["wall"]),
        "ticks left out": profile["left_out"],
        "wall time from": profile["wall_from"],
        "read ceiling": f"{profile['ceilings']['read_gbps']:g} GB/s",
        "copy ceiling": f"{profile['ceilings']['copy_gbps']:g} GB/s",
        "product ceiling": f"{profile['ceilings']['tflops']:g} TFLOP/s "
        f"{profile['ceilings']['dtype']}",
        "cost of recording": "not measured" if share is None else f"{share:+.1%} of a tick",
        **{f"version of {name}": value for name, value in profile["versions"].items()},
    }
    rows = tuple((name, str(value)) for name, value in facts.items())
    return Table("Environment", "Ceilings were measured in this run.", ("what", "value"), rows)


def every(profile: Profile) -> tuple[Table, ...]:
    """In the order of a report."""
    return tuple(make(profile) for make in (phases, ops, lines, levels, environment))
