"""What a profile says: where the tick goes, what is lost against floors, what would help most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microturn.profiling.attribution import BETWEEN
from microturn.profiling.document import Profile

CALLS = "calls"
"""What binds an op whose time its bytes and flops explain to less than a quarter."""
EXPLAINED = 0.25

NEAR = 0.10
"""How far a predicted p50 may lie from the measured one."""


@dataclass(frozen=True)
class Part:
    """A stretch of the mean tick, in ms. Stretches follow one another and fill the tick."""

    name: str
    phase: str
    ms: float


@dataclass(frozen=True)
class Loss:
    """One op over a tick, all its parts together, ms of the ticks in the middle.

    floor_ms  None where the family does not say; of_floor: floor over time
    binds     "bytes", "flops", CALLS, or "" where unknown
    torch_calls  that it makes, None where nobody counted
    """

    op: str
    parts: tuple[str, ...]
    calls: int
    ms: float
    floor_ms: float | None
    bytes: int | None
    flops: int | None
    binds: str
    torch_calls: float | None

    @property
    def lost_ms(self) -> float:
        return self.ms - (self.floor_ms or 0.0)

    @property
    def of_floor(self) -> float | None:
        return None if self.floor_ms is None or not self.ms else self.floor_ms / self.ms


@dataclass(frozen=True)
class Told:
    """A prediction beside what was measured at one number of sessions.

    off    of its p50 against the measured one
    over   of its p99
    holds  p50 within NEAR, p99 not below
    """

    sessions: int
    off: float
    over: float

    @property
    def holds(self) -> bool:
        return abs(self.off) <= NEAR and self.over >= 0


def told(profile: Profile, name: str) -> list[Told]:
    """name: "predicted" (before that number was measured) or "fitted" (to ticks beside those it is
    compared with); numbers of which nothing was predicted are left out.
    """
    found = []
    for level in profile["levels"]:
        p50, p99 = level[f"{name}_ms_p50"], level[f"{name}_ms_p99"]
        if p50 is not None:
            off, over = p50 / level["measured_ms_p50"] - 1, p99 / level["measured_ms_p99"] - 1
            found.append(Told(level["sessions"], off, over))
    return found


def predictions(profile: Profile) -> list[str]:
    """How good admission's predictions were, in words; nothing where there was no sweep."""
    made = []
    whats = {"fitted": "Fitted to other ticks", "predicted": "Before a number was measured"}
    for name, what in whats.items():
        if found := told(profile, name):
            worst, least = max((abs(t.off), t.off) for t in found)[1], min(t.over for t in found)
            good = sum(t.holds for t in found)
            made.append(
                f"{what}, admission's p50 is {worst:+.1%} off at worst (bar: {NEAR:.0%}) and its "
                f"p99 {least:+.1%} from the measured one at least (bar: not below): both hold at "
                f"{good} of {len(found)} numbers of sessions."
            )
    return made


def middle(profile: Profile) -> NDArray[np.intp]:
    """Indices of the ticks whose wall time lies between the quartiles: what disturbed a tick is
    not what it costs.
    """
    wall = np.array(profile["ticks"]["wall"])
    low, high = np.percentile(wall, (25, 75), method="inverted_cdf")
    return np.flatnonzero((wall >= low) & (wall <= high))


def waterfall(profile: Profile) -> tuple[list[Part], float]:
    """The stretches of the mean of the middle ticks, and its wall time in ms, which was measured
    apart from them: what they do not account for is the difference.
    """
    chosen = middle(profile)
    ticks = {name: float(np.mean(np.array(ms)[chosen])) for name, ms in profile["ticks"].items()}
    parts = [Part("gather", "gather", ticks["gather"]), Part("plan", "plan", ticks["plan"])]
    parts.append(Part("staging", "step", ticks["step"] - ticks["model"]))
    by_part: dict[str, float] = {}
    for line in profile["lines"]:
        ms = float(np.mean(np.array(line["ms"])[chosen]))
        by_part[line["part"]] = by_part.get(line["part"], 0.0) + ms
    parts += [Part(name or "model", "step", ms) for name, ms in by_part.items()]
    return [*parts, Part("emit", "emit", ticks["emit"])], ticks["wall"]


def losses(profile: Profile) -> list[Loss]:
    """Every op, the one that loses most against its floor first."""
    chosen = middle(profile)
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in profile["lines"]:
        lines.setdefault(line["op"], []).append(line)
    return sorted((_loss(op, its, profile, chosen) for op, its in lines.items()), key=_most)


def _most(loss: Loss) -> float:
    return -loss.lost_ms


def _loss(op: str, lines: list[dict[str, Any]], profile: Profile, chosen: NDArray[np.intp]) -> Loss:
    def total(name: str) -> Any:
        values = [line[name] for line in lines]
        return None if None in values else sum(values)

    ms = float(sum(np.mean(np.array(line["ms"])[chosen]) for line in lines))
    floor, nbytes, flops = total("floor_ms"), total("bytes"), total("flops")
    binds = ""
    if op == BETWEEN:
        binds = CALLS
    elif floor is not None:
        ceilings = profile["ceilings"]
        by_bytes = nbytes / ceilings["read_gbps"] / 1e6
        by_flops = flops / ceilings["tflops"] / 1e9
        heavier = "bytes" if by_bytes >= by_flops else "flops"
        binds = CALLS if floor < EXPLAINED * ms else heavier
    parts = tuple(dict.fromkeys(line["part"] for line in lines))
    calls = sum(line["calls"] for line in lines)
    return Loss(op, parts, calls, ms, floor, nbytes, flops, binds, lines[0]["torch_calls"])


def advice(profile: Profile, most: int = 5) -> list[str]:
    """What would help most, each with what it could give at best; the largest first."""
    wall = waterfall(profile)[1]
    found: list[tuple[float, str]] = []
    for loss in losses(profile):
        share = f"{loss.lost_ms:.2f} ms ({loss.lost_ms / wall:.0%}) of the tick"
        if loss.op == BETWEEN:
            text = f"{share} lie between ops, in the model's own glue: fuse it, or capture it"
        elif loss.floor_ms is None:
            text = f"{loss.op} takes {share}; its family states no bytes and flops, so no floor"
        else:
            count = f"{loss.calls} call{'s' * (loss.calls != 1)}"
            inside = f" with {loss.torch_calls:g} torch calls inside" if loss.torch_calls else ""
            take = "take" if loss.calls != 1 else "takes"
            text = (
                f"{loss.op} at its floor would give back {share}: {count}{inside} {take} "
                f"{loss.ms:.2f} ms, its bytes and flops want {loss.floor_ms:.2f} ms; "
                + _HOW[loss.binds]
            )
        found.append((loss.lost_ms, text))
    ticks = profile["ticks"]
    host = sum(float(np.median(ticks[name])) for name in ("gather", "plan", "emit"))
    found.append(
        (host, f"gather, plan and emit take {host:.2f} ms ({host / wall:.1%}) of the tick")
    )
    return [text for _, text in sorted(found, key=lambda item: -item[0])[:most]]


_HOW = {
    CALLS: "what binds is the fixed cost of calls, so make fewer and larger ones",
    "bytes": "what binds is bytes, so store or read less",
    "flops": "what binds is arithmetic",
}


def summary(profile: Profile) -> list[str]:
    """Five sentences with numbers."""
    ticks, period = profile["ticks"], profile["tick_ms"]
    wall, slack = np.array(ticks["wall"]), np.array(ticks["slack"])
    p50, p99 = np.percentile(wall, (50, 99), method="inverted_cdf")
    late = int((slack < 0).sum())
    parts, mean = waterfall(profile)
    largest = max(parts, key=lambda part: part.ms)
    every = losses(profile)
    worst = every[0]
    floor = sum(loss.floor_ms or 0.0 for loss in every)
    overhead, capacity = profile["overhead"], profile["capacity"]
    told = "not measured" if overhead["share"] is None else f"{overhead['share']:+.1%}"
    sessions = profile["sessions"]
    return [
        f"A tick of {sessions} session{'s' * (sessions != 1)} took {p50:.1f} ms at the median and "
        f"{p99:.1f} ms at p99 of a period of {period} ms; {late} of {len(wall)} ticks ended late.",
        f"Its longest stretch is {largest.name} with {largest.ms:.1f} ms, {largest.ms / mean:.0%} "
        f"of the tick, and the stretches account for {sum(p.ms for p in parts) / mean:.1%} of it.",
        f"At the ceilings of this run ({profile['ceilings']['read_gbps']:g} GB/s, "
        f"{profile['ceilings']['tflops']:g} TFLOP/s) its ops want {floor:.2f} ms, so it runs at "
        f"{floor / mean:.0%} of its floor.",
        f"Most is lost in {worst.op}: {worst.lost_ms:.1f} ms a tick, {worst.lost_ms / mean:.0%} "
        f"of it.",
        f"By the fitted prediction {capacity['sessions']} sessions fit the period with a margin of "
        f"{capacity['margin_ms']:g} ms; recording changed the tick by {told}.",
    ]
