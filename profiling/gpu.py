"""Where a tick's time goes on a GPU: replays under CUPTI, beside the same replays unwatched.

    PYTHONPATH=tests/_typecheck python -P -m microturn.profiling.gpu --out out

Needs torch, Triton and numpy, nothing else. Writes graph.trace.json (Chrome format), graph.json:

    {"schema": 1, "kind": "graph", "case": ..., "dtype": ..., "device": ..., "git": ...,
     "date": ..., "ceilings": ..., "replays": ..., "graph_ms_p50", "watched_ms_p50" (by events;
     watched: with the profiler on), "overhead" (of watching), "kernels_ms", "gaps_ms", "off",
     "holds", "says", "lines": [{"part", "op", "calls", "bytes", "flops", "floor_us", "us",
     "lost_us"}] sorted by time lost,
     "kernels": [see `graph.table`]}

Exit code 1 where kernels and gaps are not within 3 % of the graph's time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from microturn.model.cost import call_bytes, even
from microturn.profiling import graph
from microturn.profiling.attribution import BETWEEN, attribute_steps
from microturn.runtime.ceilings import Ceilings

if TYPE_CHECKING:
    from microturn.runtime.kernel_index import Place

SCHEMA = 1
REPLAYS = 20
WARM = 10
WIDTH = 2
"""Bytes of all other values."""


def document(
    trace: Mapping[str, Any],
    places: Sequence[Place],
    family: Any,
    sessions: int,
    *,
    graph_ms: Sequence[float],
    watched_ms: Sequence[float],
    ceilings: Ceilings,
    dtype: str = "bf16",
) -> dict[str, Any]:
    """What is measured of it. dtype: of the stored weights; graph_ms, watched_ms: of replays
    without the profiler and with it. Raises ValueError where the trace is not of this graph.
    """
    found = graph.replays(trace)
    every = [graph.place(replay, places) for replay in found]
    work = even(sessions, sessions * (1 + family.shape.frames), family.window_rows)
    lines = []
    steps = [graph.step_of(placed, work) for placed in every]
    for line in attribute_steps(steps, family, lambda call: call_bytes(call, WIDTH, dtype)):
        known = line.bytes is not None and line.flops is not None
        floor = ceilings.floor_us(line.bytes or 0, line.flops or 0) if known else None
        us = median(line.ns) / 1e3
        lost = us if line.key.op == BETWEEN else us - (floor or 0.0)
        about = {"calls": line.calls, "bytes": line.bytes, "flops": line.flops, "floor_us": floor}
        lines.append({**line.key._asdict(), **about, "us": us, "lost_us": lost})
    matched = graph.match(found, graph_ms)
    return {
        "replays": len(found),
        "graph_ms_p50": median(graph_ms),
        "watched_ms_p50": median(watched_ms),
        "overhead": median(watched_ms) / median(graph_ms) - 1,
        "kernels_ms": matched.kernels_ms,
        "gaps_ms": matched.gaps_ms,
        "off": matched.off,
        "holds": matched.holds,
        "says": graph.sentence(matched),
        "lines": sorted(lines, key=lambda line: -line["lost_us"]),
        "kernels": graph.table(every),
    }


def capture(preset: str, dtype: str, sessions: int, out: Path) -> dict[str, Any]:
    """Random weights of a preset on the first GPU, every window full."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from microturn.model.interaction import InteractionFamily, InteractionModel
    from microturn.model.interaction import preset as config_of
    from microturn.runtime import machine
    from microturn.runtime.ceilings import measure
    from microturn.runtime.foresight import usual_inputs, usual_plan
    from microturn.runtime.gpu_engine import GpuEngine, tick_sizes
    from microturn.runtime.graphs import CudaMachine
    from microturn.runtime.timing import timer

    gpu = CudaMachine()
    ceilings = measure(timer(gpu.device))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(gpu.device):
        model = InteractionModel(config_of(preset))
    torch.set_default_dtype(torch.float32)
    model.reset_parameters(torch.Generator(gpu.device).manual_seed(0))
    with torch.inference_mode():
        family = InteractionFamily(model, tick_ms=100).to(gpu.device, dtype)
    shape = family.shape
    sizes = [size for size in tick_sizes(sessions, shape, False) if size.lines == sessions]
    engine = GpuEngine(family, sessions, gpu, sizes[:1])
    engine.warm_up()
    opened, plan = (usual_plan(shape, sessions, reset=reset) for reset in (True, False))
    inputs = usual_inputs(shape, plan)
    engine.step(opened, inputs)
    for slot in range(sessions):
        engine.age_slot(slot)

    def steps(count: int) -> list[float]:
        took = []
        for _ in range(count):
            engine.step(plan, inputs)
            took.append(engine.step_ms)
        return took

    steps(WARM)
    graph_ms = steps(REPLAYS)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]):  # its first use is slow
        steps(2)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        watched_ms = steps(REPLAYS)
        torch.cuda.synchronize()
    graph_ms += steps(REPLAYS)
    path = out / "graph.trace.json"
    profiler.export_chrome_trace(str(path))
    places = engine.places[engine.sizes[0]]
    about = {
        "schema": SCHEMA,
        "kind": "graph",
        "case": f"preset={preset},S={sessions},tick_ms={shape.tick_ms}",
        "dtype": dtype,
        "device": machine.device_name("cuda"),
        "torch": torch.__version__,
        "git": machine.git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ceilings": ceilings.as_json(),
    }
    return about | document(
        json.loads(path.read_text("utf-8")),
        places,
        family,
        sessions,
        graph_ms=graph_ms,
        watched_ms=watched_ms,
        ceilings=ceilings,
        dtype=dtype,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m microturn.profiling.gpu")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--preset", default="interaction-mini")
    parser.add_argument("--dtype", default="bf16", help="of the weights: bf16 or fp8")
    parser.add_argument("--sessions", type=int, default=16)
    asked = parser.parse_args(arguments)
    from microturn.runtime.engines import check_cuda
    from microturn.runtime.errors import ConfigError

    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        check_cuda()
        made = capture(asked.preset, asked.dtype, asked.sessions, asked.out)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    (asked.out / "graph.json").write_text(json.dumps(made, allow_nan=False, indent=1) + "\n")
    for line in made["lines"][:10]:
        floor = "" if line["floor_us"] is None else f", floor {line['floor_us']:.1f}"
        print(f"  {line['part']}: {line['op']}, {line['calls']} calls: {line['us']:.1f} us{floor}")
    print(made["says"])
    return int(not made["holds"])


if __name__ == "__main__":
    sys.exit(main())
