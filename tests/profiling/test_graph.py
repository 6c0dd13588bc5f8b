"""Replays of a graph in a trace as torch's profiler writes it, laid beside the engine's table.

The table is the engine's own, of a dry tick; the trace is made from it: operators of torch launch
one kernel, several or none, kernels overlap as under programmatic launches, and copies and eager
kernels lie around the replays.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from microturn.model.cost import even
from microturn.model.interaction import InteractionFamily, preset
from microturn.profiling import graph
from microturn.profiling.attribution import BETWEEN
from microturn.profiling.gpu import document
from microturn.runtime.ceilings import Ceilings
from microturn.runtime.dry_run import dry_family
from microturn.runtime.kernel_index import Place

SESSIONS = 2
STREAM, GRAPH, COPY_IN, COPY_OUT = 7, 100, 1, 2
GAP, LONG = 1.5, 8.0
"""us between two kernels, and of one; the overlapping ones begin 0.5 us early."""


@pytest.fixture(scope="module")
def dry() -> tuple[InteractionFamily, list[Place]]:
    """The tick in a process that interprets no kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-m", "microturn.runtime.dry_run", "interaction-tiny"]
    command += ["--lines", str(SESSIONS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    places = [Place(**{name: line[name] for name in Place._fields}) for line in lines]
    return dry_family(preset("interaction-tiny"), "bf16"), places


def device(name: str, at: float, us: float, correlation: int, cat: str = "kernel") -> Any:
    """As of torch 2.13; copies have no registers."""
    args: dict[str, Any] = {"device": 0, "context": 1, "stream": STREAM, "correlation": correlation}
    if cat == "kernel":
        args |= {"registers per thread": 64, "shared memory": 1024, "warps per SM": 8.0}
        args |= {"grid": [132, 1, 1], "block": [128, 1, 1], "est. achieved occupancy %": 25}
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": STREAM, "ts": at, "dur": us,
            "args": args}  # fmt: skip


def host(name: str, at: float, correlation: int) -> Any:
    args = {"External id": 1, "cbid": 311, "correlation": correlation}
    return {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 9, "tid": 9, "ts": at,
            "dur": 3.0, "args": args}  # fmt: skip


def launches(place: Place) -> list[str]:
    """Kernels of one line of the table."""
    if place.op != graph.TORCH:
        return [place.kernel]
    return {"arange": [], "cat": ["void at::cat<0>", "void at::cat<1>"]}.get(
        place.kernel, [f"void at::native::{place.kernel}"]
    )


def trace(places: Sequence[Place], replays: int = 3, slower: str = "") -> dict[str, Any]:
    """slower: kernels of this name take twice as long."""
    events: list[Any] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}}]
    at = 1000.0
    for replay in range(replays):
        first = 1000 * replay
        events.append(device("void at::eager", at, 2.0, first + 3))
        events.append(host("cudaMemcpyAsync", at - 5, first + COPY_IN))
        events.append(device("Memcpy DtoD", at + 4, 2.0, first + COPY_IN, "gpu_memcpy"))
        events.append(host("cudaGraphLaunch", at - 3, first + GRAPH))
        at += 8.0
        for index, name in enumerate(name for place in places for name in launches(place)):
            us = LONG * (1 + (name == slower)) + 0.01 * replay
            early = 0.5 if index % 5 == 4 else -GAP
            at -= early
            events.append(device(name, at, us, first + GRAPH))
            at += us
        events.append(device("Memcpy DtoD", at + 1, 2.0, first + COPY_OUT, "gpu_memcpy"))
        at += 500.0
    return {"schemaVersion": 1, "deviceProperties": [{"id": 0}], "traceEvents": events[::-1]}


def told(found: dict[str, Any], spans_ms: Sequence[float], dry: Any) -> dict[str, Any]:
    family, places = dry
    ceilings = Ceilings(4000.0, 3900.0, 700.0, "bf16")
    return document(found, places, family, SESSIONS, graph_ms=spans_ms, watched_ms=spans_ms,
                    ceilings=ceilings)  # fmt: skip


def spans(found: dict[str, Any]) -> list[float]:
    """What events around the replays and their copies would say, in ms."""
    return [(r.around[1].end - r.around[0].start) / 1e3 for r in graph.replays(found)]


def test_the_table_lists_ops_as_the_family_costs_them(dry: Any) -> None:
    family, places = dry
    ran = [op for op, _ in groupby(p.op for p in places if p.op != graph.TORCH)]
    work = even(SESSIONS, 3 * SESSIONS, family.window_rows)
    assert ran == [op for op, _ in groupby(call.op for call in family.calls(work))]


def test_kernels_and_gaps_are_the_graphs_time(dry: Any) -> None:
    found = trace(dry[1])
    made = told(found, spans(found), dry)
    assert made["replays"] == 3 and made["holds"] and abs(made["off"]) < 1e-6
    count = sum(len(launches(place)) for place in dry[1])
    overlapped = len(range(4, count, 5))
    busy = count * (LONG + 0.01) - 0.5 * overlapped + 4
    assert made["kernels_ms"] == pytest.approx(busy / 1e3, rel=1e-6)
    assert "within 3%" in made["says"] and "NOT" not in made["says"]
    for wrong in (0.96, 1.04):
        made = told(found, [wrong * ms for ms in spans(found)], dry)
        assert not made["holds"] and "NOT within" in made["says"]


def test_every_kernel_has_its_pass_layer_and_op(dry: Any) -> None:
    found = trace(dry[1])
    rows = told(found, spans(found), dry)["kernels"]
    wanted = [(place, name) for place in dry[1] for name in launches(place)]
    assert [row["kernel"] for row in rows] == [name for _, name in wanted]
    for row, (place, _) in zip(rows, wanted, strict=True):
        if place.op != graph.TORCH:
            assert (row["pass"], row["layer"], row["op"]) == (place.passed, place.layer, place.op)
            assert (row["registers"], row["shared"], row["occupancy"]) == (64, 1024, 0.25)
        assert row["op"] == place.op
    gaps = {row["gap_us"] for row in rows}
    assert gaps == {0.0, GAP}


def test_lines_have_bytes_and_floors_and_a_slower_kernel_leads(dry: Any) -> None:
    plain = told(trace(dry[1]), [1.0], dry)
    lines = {(line["part"], line["op"]): line for line in plain["lines"]}
    assert lines["append", "grouped_experts"]["floor_us"] > 0
    assert lines["decode.1", "linear"]["bytes"] > 0
    assert lines["append", BETWEEN]["calls"] == 0
    layers = dry[0].config.trunk.num_layers
    assert lines["append", "qkvr_prologue"]["us"] == pytest.approx(layers * LONG, rel=0.1)
    slow = {
        (n["part"], n["op"]): n for n in told(trace(dry[1], slower="attend"), [1.0], dry)["lines"]
    }
    key = ("append", "streaming_attention")
    assert slow[key]["us"] - lines[key]["us"] == pytest.approx(layers * LONG, rel=0.01)
    total = sum(line["us"] for line in plain["lines"])
    replay = graph.replays(trace(dry[1]))[1]
    assert total == pytest.approx(replay.kernels[-1].end - replay.kernels[0].start, rel=1e-3)


def test_a_trace_of_another_graph_is_refused(dry: Any) -> None:
    places = list(dry[1])
    lost = next(i for i, place in enumerate(places) if place.kernel == "attend")
    with pytest.raises(
        ValueError, match=r"kernel \d+ of ours in the graph is linear_tiles, the engi"
    ):
        told(trace(places[:lost] + places[lost + 1 :]), [1.0], dry)
    last = max(i for i, place in enumerate(places) if place.op != graph.TORCH)
    with pytest.raises(ValueError, match="or lost some"):
        told(trace(places[:last] + places[last + 1 :]), [1.0], dry)
    without = trace(places)
    without["traceEvents"] = [e for e in without["traceEvents"] if e.get("cat") != "kernel"]
    with pytest.raises(ValueError, match="3 launches of graphs and no kernel of one"):
        told(without, [1.0], dry)


def test_without_a_table_of_torch_kernels_they_go_to_the_next_place() -> None:
    places = [Place("append", 0, "trunk.layers.0", "linear", "linear_tiles")] * 2
    found = trace([places[0], Place("", None, "", graph.TORCH, "fill"), places[1]], 1)
    placed = graph.place(graph.replays(found)[0], places)
    assert [(p.place.op, p.place.layer) for p in placed] == [
        ("linear", 0),
        ("torch", 0),
        ("linear", 0),
    ]
    assert np.isclose(placed[1].gap_us, GAP)
