"""Replays of a tick's graph in a trace of torch's profiler, kernel by kernel. No torch.

All kernels of a replay carry the correlation of the cudaGraphLaunch that replayed it. Their order
is that of the engine's kernel-index table, which counts an operator of torch once where it launches
several kernels, or none: so kernels of ours are matched one to one, and what lies between two of
them by turns, the rest of a stretch to its last place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from microturn.profiling.recorder import Event, Step

if TYPE_CHECKING:
    from microturn.model.cost import TickWork
    from microturn.runtime.kernel_index import Place

WITHIN = 0.03
"""How far kernels and gaps may be from the graph's time."""
TORCH = "torch"
"""The op of what torch launches, as in the table."""
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cudaGraphLaunch", "cuGraphLaunch")


class Kernel(NamedTuple):
    """One kernel, copy or fill; start and end in us. registers: a thread's; shared: bytes of a
    block; occupancy: as CUPTI estimates it, from 0 to 1; None for what is no kernel.
    """

    name: str
    start: float
    end: float
    registers: int | None
    shared: int | None
    occupancy: float | None


@dataclass(frozen=True)
class Replay:
    """kernels: of the graph, by their start. around: the copies of the tick's input and output
    before and behind it on its stream, if the trace has them.
    """

    kernels: tuple[Kernel, ...]
    around: tuple[Kernel, ...] = ()

    @property
    def busy_us(self) -> float:
        """In which something ran, copies around included; what overlaps counts once."""
        return sum(end - start for start, end in self._runs())

    @property
    def gaps_us(self) -> float:
        return sum(b[0] - a[1] for a, b in pairwise(self._runs()))

    def _runs(self) -> list[tuple[float, float]]:
        found: list[tuple[float, float]] = []
        for kernel in sorted((*self.kernels, *self.around), key=_start):
            if found and kernel.start <= found[-1][1]:
                found[-1] = found[-1][0], max(found[-1][1], kernel.end)
            else:
                found.append((kernel.start, kernel.end))
        return found


class Placed(NamedTuple):
    """A kernel and where in the tick it stands. gap_us: before it, in which nothing ran."""

    place: Place
    kernel: Kernel
    gap_us: float


@dataclass(frozen=True)
class Match:
    """Kernels and gaps of the median replay beside the time of the graph, measured apart, in ms."""

    kernels_ms: float
    gaps_ms: float
    graph_ms: float

    @property
    def off(self) -> float:
        return (self.kernels_ms + self.gaps_ms) / self.graph_ms - 1

    @property
    def holds(self) -> bool:
        return abs(self.off) <= WITHIN


def replays(trace: Mapping[str, Any]) -> list[Replay]:
    """trace: in Chrome's format, as torch's profiler writes it. Raises ValueError where it has no
    replay of a graph with its kernels.
    """
    events = [e for e in trace.get("traceEvents", ()) if e.get("ph") == "X"]
    launched = {
        e["args"]["correlation"]
        for e in events
        if e["name"].startswith(LAUNCHES) and "correlation" in e.get("args", {})
    }
    streams: dict[Any, list[Any]] = defaultdict(list)
    for event in events:
        if event.get("cat") in ON_DEVICE:
            streams[event["args"].get("stream")].append(event)
    found = [replay for its in streams.values() for replay in _of_stream(its, launched)]
    if not found:
        raise ValueError(
            f"the trace has {len(launched)} launches of graphs and no kernel of one: record with "
            f"ProfilerActivity.CUDA, around whole ticks, where CUPTI may be used"
        )
    return sorted(found, key=lambda replay: replay.kernels[0].start)


def _of_stream(events: Sequence[Any], launched: set[Any]) -> Iterable[Replay]:
    ordered = sorted(events, key=lambda event: float(event["ts"]))
    by_launch: dict[Any, list[int]] = {}
    for index, event in enumerate(ordered):
        if event["args"].get("correlation") in launched:
            by_launch.setdefault(event["args"]["correlation"], []).append(index)
    for its in by_launch.values():
        beside = [i for i in (its[0] - 1, its[-1] + 1) if 0 <= i < len(ordered)]
        copies = [
            _kernel(ordered[i])
            for i in beside
            if ordered[i]["cat"] == "gpu_memcpy"
            and ordered[i]["args"].get("correlation") not in launched
        ]
        yield Replay(tuple(_kernel(ordered[i]) for i in its), tuple(copies))


def _kernel(event: Mapping[str, Any]) -> Kernel:
    start, about = float(event["ts"]), event["args"]
    percent = about.get("est. achieved occupancy %")
    return Kernel(
        event["name"],
        start,
        start + float(event["dur"]),
        about.get("registers per thread"),
        about.get("shared memory"),
        None if percent is None else percent / 100,
    )


def _start(kernel: Kernel) -> float:
    return kernel.start


def place(replay: Replay, places: Sequence[Place]) -> list[Placed]:
    """Every kernel of a replay with its place. Raises ValueError where ours are not those of the
    table, in its order.
    """
    ours = {p.kernel for p in places if p.op != TORCH}
    kernels = replay.kernels
    seen = [i for i, kernel in enumerate(kernels) if kernel.name in ours]
    listed = [i for i, p in enumerate(places) if p.op != TORCH]
    for number, (i, j) in enumerate(zip(seen, listed, strict=False)):
        if kernels[i].name != places[j].kernel:
            raise ValueError(
                f"kernel {number} of ours in the graph is {kernels[i].name}, the engine's table "
                f"says {places[j].kernel}: the trace is of another graph"
            )
    if len(seen) != len(listed):
        raise ValueError(
            f"the graph ran {len(seen)} kernels of ours, the engine's table has {len(listed)}: the "
            f"trace is of another graph, or lost some"
        )
    found: list[Place] = []
    in_graph, in_table = [-1, *seen, len(kernels)], [-1, *listed, len(places)]
    edges = zip(pairwise(in_graph), pairwise(in_table), strict=True)
    for (before, at), (table_before, table_at) in edges:
        between = places[table_before + 1 : table_at]
        around = places[table_at] if table_at < len(places) else places[-1]
        for turn, kernel in enumerate(kernels[before + 1 : at]):
            if between:
                found.append(between[min(turn, len(between) - 1)])
            else:
                found.append(around._replace(op=TORCH, kernel=kernel.name))
        if at < len(kernels):
            found.append(places[table_at])
    placed, until = [], kernels[0].start
    for where, kernel in zip(found, kernels, strict=True):
        placed.append(Placed(where, kernel, max(0.0, kernel.start - until)))
        until = max(until, kernel.end)
    return placed


def step_of(placed: Sequence[Placed], work: TickWork | None) -> Step:
    """As `attribution` takes it: kernels of ours as events in ns, those of one op that overlap cut
    to where the one before ended; all else lies between ops.
    """
    kernels = [p.kernel for p in placed]
    begin = kernels[0].start

    def ns(us: float) -> int:
        return round(1000 * (us - begin))

    events, until = [], 0
    for where, kernel, _ in placed:
        if where.op != TORCH:
            start = max(until, ns(kernel.start))
            until = max(start, ns(kernel.end))
            events.append(Event(where.op, start, until))
    return Step(work, 0, ns(max(kernel.end for kernel in kernels)), events)


def table(every: Sequence[Sequence[Placed]]) -> list[dict[str, Any]]:
    """A row for each kernel of the graph, its times the medians over replays, in us."""
    rows = []
    for index, (where, kernel, _) in enumerate(every[0]):
        its = [placed[index] for placed in every]
        rows.append(
            {
                "index": index,
                "pass": where.passed,
                "layer": where.layer,
                "module": where.module,
                "op": where.op,
                "kernel": kernel.name,
                "us": round(median(p.kernel.end - p.kernel.start for p in its), 3),
                "gap_us": round(median(p.gap_us for p in its), 3),
                "registers": kernel.registers,
                "shared": kernel.shared,
                "occupancy": kernel.occupancy,
            }
        )
    return rows


def match(found: Sequence[Replay], graph_ms: Sequence[float]) -> Match:
    """graph_ms: of replays that no profiler watched, by events around them and their copies."""
    middle = sorted(found, key=lambda r: r.busy_us + r.gaps_us)[len(found) // 2]
    return Match(middle.busy_us / 1e3, middle.gaps_us / 1e3, median(graph_ms))


def sentence(found: Match) -> str:
    verdict = "within" if found.holds else "NOT within"
    return (
        f"kernels {found.kernels_ms:.3f} ms and gaps {found.gaps_ms:.3f} ms are {found.off:+.1%} "
        f"off the graph's {found.graph_ms:.3f} ms, {verdict} {WITHIN:.0%}"
    )
