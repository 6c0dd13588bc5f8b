"""Whole ticks on a GPU, out of the engine itself: the part `tick` of `make gpu`.

    make gpu PARTS=tick
    python -P -m microturn.bench.gpu_tick --out out [--dtype fp8 --real-ticks 3000]

3,000 ticks of a real clock take five minutes: one dtype a command of ten.

First the engine's bits: a small model on the GPU in fp32 against the CPU's engine, a session alone
against among others, and overlapped steps against plain ones. Nothing is timed unless that passes.
Then models of the published sizes with random weights, every session's windows full:

    interaction-small, one of eight ranks (`shard=8`): heads, experts' and dense widths and the
        vocabulary are an eighth, depth head and codec whole. The two reductions a layer owes its
        peers are delays of 8 us (`collectives=simulated`)
    interaction-mini

Rows are of schema 1, op "tick", and add: floor_ms (bytes that must move over the read ceiling of
the same run, the collectives added), of_floor, host_ms_p50, host_ms_p99 (a tick's work on the host:
inputs filled and launched, outputs shared out), wall_ms_p50 (between two ticks of a free run),
wake_ms_p99, graph_misses, launches (of the graph), warm_up_s, state_gb, weights_gb, clock ("real"
at 100 ms, or "free": as fast as it goes, plain or overlapped). Misses are outputs after their
deadline, counted on a real clock only; of a free run, steps longer than a tick.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microturn.bench import schema
from microturn.model.cost import EXCHANGE_US
from microturn.runtime.bounds import upper95

if TYPE_CHECKING:
    from microturn.model.interaction import InteractionFamily
    from microturn.model.tick import TickSize
    from microturn.runtime.engine import RowInput
    from microturn.runtime.gpu_engine import GpuEngine
    from microturn.runtime.graphs import Machine
    from microturn.runtime.plan import TickPlan

TICK_MS = 100
COMPILE_SECONDS = 150.0
WARM_TICKS = 20
SAME_IDS = 0.9
"""Share of the ids of a first tick that a GPU must draw as the CPU does: both compute in fp32 but
add in other orders, so near ties may fall otherwise."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model as it is measured. ways: ranks it is cut into; 1: whole."""

    preset: str
    ways: int
    dtype: str
    sessions: int

    @property
    def case(self) -> str:
        cut = f"shard={self.ways},collectives=simulated," if self.ways > 1 else ""
        return f"preset={self.preset},{cut}S={self.sessions},tick_ms={TICK_MS}"


SUBJECTS = (
    Subject("interaction-small", 8, "fp8", 64),
    Subject("interaction-small", 8, "fp8", 1),
    Subject("interaction-small", 8, "bf16", 64),
    Subject("interaction-mini", 1, "bf16", 64),
)
REHEARSAL = (Subject("interaction-tiny", 1, "fp32", 2),)


def build(subject: Subject, device: Any) -> InteractionFamily:
    """Random weights, made on the device in the width they are computed in."""
    import torch

    from microturn.model.interaction import InteractionFamily, InteractionModel, preset
    from microturn.model.interaction.shard import shard

    config = shard(preset(subject.preset), subject.ways)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if subject.dtype == "fp32" else torch.bfloat16)
    try:
        with torch.device(device):
            model = InteractionModel(config)
    finally:
        torch.set_default_dtype(before)
    model.reset_parameters(torch.Generator(device).manual_seed(0))
    with torch.inference_mode():
        return InteractionFamily(model, tick_ms=TICK_MS).to(device, subject.dtype)


def simulate_collectives(family: InteractionFamily, us: float) -> int:
    """A delay behind attention and behind the MLP of every layer; how many there are in a pass."""
    import torch

    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
    began.record()
    torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
    ended.record()
    ended.synchronize()
    cycles = int(us * 100_000_000 / (1000 * began.elapsed_time(ended)))

    def wait(module: Any, given: Any, made: Any) -> None:
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]

    layers: list[Any] = list(family.model.trunk.layers)
    for layer in layers:
        layer.attn.register_forward_hook(wait)
        layer.mlp.register_forward_hook(wait)
    return 2 * len(layers)


def plan_of(family: InteractionFamily, sessions: int, tick: int, fresh: bool = False) -> TickPlan:
    """Every session hears and speaks."""
    from microturn.runtime.plan import RowPlan, TickPlan, bucket

    frames = family.shape.frames
    rows = tuple(RowPlan(f"s{s}", s, True, fresh, 0, 0, frames) for s in range(sessions))
    return TickPlan(tick, 0, bucket(sessions), bucket(sessions * (1 + frames)), rows)


def heard(family: InteractionFamily, sessions: int, tick: int, heat: float) -> dict[str, RowInput]:
    """Seeded noise; a session hears the same whoever else is there."""
    from microturn.model.family import Sampling
    from microturn.runtime.engine import RowInput

    how = Sampling() if heat else Sampling(0.0, 1, 0.0, 1)
    made = {}
    for s in range(sessions):
        noise = np.random.default_rng((s, tick)).standard_normal(family.shape.input_samples)
        made[f"s{s}"] = RowInput((0.05 * noise).astype(np.float32), (), s, how)
    return made


def usual_sizes(family: InteractionFamily, sessions: int) -> tuple[TickSize, ...]:
    """The one graph that a tick in which everybody only hears and speaks replays."""
    from microturn.runtime.gpu_engine import tick_sizes

    return tuple(s for s in tick_sizes(sessions, family.shape, False) if s.lines == sessions)[:1]


def engine_of(family: InteractionFamily, sessions: int, machine: Machine) -> GpuEngine:
    from microturn.runtime.gpu_engine import GpuEngine

    engine = GpuEngine(family, sessions, machine, usual_sizes(family, sessions))
    engine.warm_up()
    return engine


def check(machine: Machine) -> str:
    """What was compared, in words. Raises AssertionError."""
    from microturn.runtime.cpu_engine import CpuEngine

    tiny = Subject("interaction-tiny", 1, "fp32", 3)
    cpu_family, family = build(tiny, "cpu"), build(tiny, "cpu")
    family.to(machine.device, "fp32")
    cpu, gpu = CpuEngine(cpu_family, 3), engine_of(family, 3, machine)
    step = plan_of(family, 3, 0, True), heard(family, 3, 0, 0.0)
    a, b = cpu.step(*step).rows, gpu.step(*step).rows
    same = [
        np.concatenate(
            ((x.text_ids == y.text_ids).ravel(), (x.codes[:, :1] == y.codes[:, :1]).ravel())
        )
        for x, y in zip(a.values(), b.values(), strict=True)
    ]
    share = float(np.mean(np.concatenate(same)))
    assert all(row.ok for row in b.values()), "a row is not finite"
    assert share >= SAME_IDS, f"{share:.0%} of the ids of a first tick are the CPU's"
    alone, among = engine_of(family, 1, machine), engine_of(family, 3, machine)
    ahead = engine_of(family, 3, machine)
    tickets: list[Any] = []
    wanted: list[Any] = []
    for tick in range(6):
        fresh = tick == 0
        one = alone.step(plan_of(family, 1, tick, fresh), heard(family, 1, tick, 1.0)).rows["s0"]
        given = plan_of(family, 3, tick, fresh), heard(family, 3, tick, 1.0)
        many = among.step(*given)
        assert one.codes.tobytes() == many.rows["s0"].codes.tobytes(), f"codes of tick {tick}"
        assert one.audio.tobytes() == many.rows["s0"].audio.tobytes(), f"audio of tick {tick}"
        tickets.append(ahead.launch(*given))
        wanted.append(many)
        if len(tickets) > 1:
            _same(wanted.pop(0), ahead.collect(tickets.pop(0)))
    _same(wanted.pop(0), ahead.collect(tickets.pop(0)))
    return f"{share:.0%} of the CPU's ids; alone = among = overlapped, to the bit"


def _same(one: Any, other: Any) -> None:
    for key, row in one.rows.items():
        assert row.audio.tobytes() == other.rows[key].audio.tobytes(), "overlapped audio differs"
        assert row.codes.tobytes() == other.rows[key].codes.tobytes(), "overlapped codes differ"


@dataclasses.dataclass
class Times:
    """Of every tick, in ms: the device's step, the host's work, what lies between two outputs, how
    late it began, and what was left until the deadline.
    """

    step: list[float] = dataclasses.field(default_factory=list)
    host: list[float] = dataclasses.field(default_factory=list)
    wall: list[float] = dataclasses.field(default_factory=list)
    wake: list[float] = dataclasses.field(default_factory=list)
    slack: list[float] = dataclasses.field(default_factory=list)
    skipped: int = 0


def free_run(engine: GpuEngine, steps: Sequence[Any], ticks: int, overlapped: bool) -> Times:
    """As fast as it goes; overlapped: the next tick is launched before the last is shared out."""
    times, flying = Times(), []
    last = time.perf_counter()
    for tick in range(WARM_TICKS + ticks):
        began = time.perf_counter()
        flying.append(engine.launch(*steps[tick % len(steps)]))
        host = time.perf_counter() - began
        if overlapped and len(flying) < 2:
            continue
        ticket = flying.pop(0)
        ticket.ready.wait()
        waited = time.perf_counter()
        engine.collect(ticket)
        now = time.perf_counter()
        if tick >= WARM_TICKS:
            times.step.append(engine.step_ms)
            times.host.append(1000 * (host + now - waited))
            times.wall.append(1000 * (now - last))
        last = now
    for ticket in flying:
        engine.collect(ticket)
    return times


def real_run(engine: GpuEngine, steps: Sequence[Any], ticks: int) -> Times:
    """On an absolute grid of 100 ms, as the runtime's clock is."""
    from microturn.runtime.clock import Grid, RealClock

    clock = RealClock()
    grid = Grid(clock.now() + 10_000_000, TICK_MS * 1_000_000)
    times, tick, done = Times(), 0, 0
    while done < ticks:
        clock.wait_until(grid.due(tick))
        woke = clock.now()
        ticket = engine.launch(*steps[done % len(steps)])
        launched = clock.now()
        ticket.ready.wait()
        waited = clock.now()
        engine.collect(ticket)
        now = clock.now()
        times.step.append(engine.step_ms)
        times.host.append((launched - woke + now - waited) / 1e6)
        times.wake.append((woke - grid.due(tick)) / 1e6)
        times.slack.append((grid.deadline(tick) - now) / 1e6)
        following = grid.after(tick, now)
        times.skipped += following - tick - 1
        tick, done = following, done + 1
    return times


def row(subject: Subject, clock: str, times: Times, facts: dict[str, Any]) -> dict[str, Any]:
    """A row of results."""

    def at(values: Sequence[float], point: float) -> float:
        return round(float(np.percentile(values, point, method="inverted_cdf")), 4)

    ticks = len(times.step)
    late = sum(s < 0 for s in times.slack) if times.slack else sum(s > TICK_MS for s in times.step)
    misses = min(ticks, late + times.skipped)
    p50 = at(times.step, 50)
    floor = facts.get("floor_ms")
    return {
        "op": "tick",
        "case": subject.case,
        "dtype": subject.dtype,
        "provider": "microturn",
        **{f"us_p{p}": 1000 * at(times.step, p) for p in (20, 50, 80)},
        "step_ms_p50": p50,
        "step_ms_p99": at(times.step, 99),
        "step_ms_p999": at(times.step, 99.9),
        "step_ms_max": round(max(times.step), 4),
        "tail": round(at(times.step, 99.9) / p50, 4) if p50 else None,
        "of_floor": round(floor / p50, 4) if floor and p50 else None,
        "host_ms_p50": at(times.host, 50),
        "host_ms_p99": at(times.host, 99),
        "wall_ms_p50": at(times.wall, 50) if times.wall else None,
        "wake_ms_p99": at(times.wake, 99) if times.wake else None,
        "slack_ms_min": round(min(times.slack), 3) if times.slack else None,
        "ticks": ticks,
        "misses": misses,
        "miss_rate_upper95": upper95(misses, ticks),
        "sessions": subject.sessions,
        "clock": clock,
        **facts,
        "note": "random weights, every window full; the device's time alone is the step",
    }


def floor_ms(
    family: InteractionFamily, subject: Subject, read_gbps: float, reductions: int
) -> float:
    """The least a tick can take: its bytes over the read ceiling, and its collectives."""
    from microturn.model.cost import CountsCost, even, totals

    assert isinstance(family, CountsCost)
    rows = subject.sessions * (1 + family.shape.frames)
    work = even(subject.sessions, rows, family.window_rows)
    width = 4 if subject.dtype == "fp32" else 2
    moved = totals(family.calls(work), width, subject.dtype).bytes
    return moved / (read_gbps * 1e6) + reductions * family.shape.frames * EXCHANGE_US / 1000


def measure(
    subject: Subject, machine: Machine, read_gbps: float, asked: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of one model, free runs first."""
    import torch

    family = build(subject, machine.device)
    on_gpu = machine.device.type == "cuda"
    simulated = on_gpu and subject.ways > 1
    reductions = simulate_collectives(family, EXCHANGE_US) if simulated else 0
    weights = torch.cuda.memory_allocated() / 1e9 if on_gpu else 0.0
    began = time.perf_counter()
    engine = engine_of(family, subject.sessions, machine)
    warm_up = time.perf_counter() - began
    steps = [
        (plan_of(family, subject.sessions, k), heard(family, subject.sessions, k, 1.0))
        for k in range(8)
    ]
    first = plan_of(family, subject.sessions, 0, True), steps[0][1]
    engine.step(*first)
    for slot in range(subject.sessions):
        engine.age_slot(slot)
    facts = {
        "floor_ms": round(floor_ms(family, subject, read_gbps, reductions), 4),
        "launches": len(next(iter(engine.places.values()), ())) or None,
        "graph_misses": engine.graph_misses,
        "warm_up_s": round(warm_up, 2),
        "state_gb": round(engine.state_bytes / 1e9, 3),
        "weights_gb": round(weights, 3),
    }
    for overlapped in (False, True):
        times = free_run(engine, steps, asked.free_ticks, overlapped)
        yield row(subject, "free, overlapped" if overlapped else "free", times, facts)
    if asked.real_ticks and (subject.sessions > 1 or not on_gpu):
        yield row(subject, "real", real_run(engine, steps, asked.real_ticks), facts)


def precompile(index: int) -> None:
    """Every kernel of a subject's graph, for sm_90, into Triton's cache on disk."""
    from microturn.model.interaction import preset
    from microturn.model.interaction.shard import shard
    from microturn.runtime.dry_run import dry_family, dry_tick

    subject = SUBJECTS[index]
    config = shard(preset(subject.preset), subject.ways)
    family = dry_family(config, subject.dtype, TICK_MS)
    for size in usual_sizes(family, subject.sessions):
        dry_tick(family, size, compile_kernels=True)


def compile_beside(wanted: Sequence[Subject]) -> float:
    """Compiles for all of them at once, each in a process of its own; the seconds it took."""
    began = time.monotonic()
    code = (
        "import sys; from microturn.bench.gpu_tick import precompile; precompile(int(sys.argv[1]))"
    )
    command = [sys.executable, "-P", "-c", code]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    running = [
        subprocess.Popen([*command, str(SUBJECTS.index(subject))], env=environment)
        for subject in wanted
    ]
    for process in running:
        try:
            process.wait(max(1.0, COMPILE_SECONDS - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:  # what is missing is compiled where it is needed
            process.kill()
            process.wait()
    return time.monotonic() - began


def run(asked: argparse.Namespace, seconds: float) -> tuple[bool, str]:
    """Everything into tick.json, written after every row; what does not fit the time says so."""
    import torch

    from microturn.bench.machine import meta
    from microturn.bench.run import measurer
    from microturn.runtime.graphs import CudaMachine, InlineMachine

    end = time.monotonic() + seconds
    on_gpu = asked.device != "cpu"
    with measurer(asked.device) as measured:
        ceilings = measured.ceilings
    assert ceilings is not None
    about = meta(asked.device, threads=torch.get_num_threads()) | {"ceilings": ceilings.as_meta()}
    machine: Machine = CudaMachine() if on_gpu else InlineMachine()
    rows: list[dict[str, Any]] = []
    path = asked.out / "tick.json"
    wanted = [s for s in (SUBJECTS if on_gpu else REHEARSAL) if _asked(s, asked)]
    if not wanted:
        return False, f"no model is stored as {', '.join(asked.dtype)}"
    if on_gpu:
        about["compile_s"] = round(compile_beside(wanted), 1)
    try:
        about["check"] = check(machine)
    except AssertionError as error:
        return False, f"nothing was timed: {error}"
    print(f"  check: {about['check']}", file=sys.stderr, flush=True)
    bad = 0
    for subject in wanted:
        if time.monotonic() > end:
            rows.append(_left_out(subject, "out of time"))
            continue
        try:
            for made in measure(subject, machine, ceilings.read_gbps, asked):
                rows.append(made)
                schema.write(path, schema.document("tick", about, rows))
                print(
                    f"  {made['case']} {made['dtype']} {made['clock']}: step p50 "
                    f"{made['step_ms_p50']} ms, p99.9 {made['step_ms_p999']}, floor "
                    f"{made['floor_ms']}, host {made['host_ms_p50']}, misses {made['misses']}",
                    file=sys.stderr,
                    flush=True,
                )
        except Exception as error:  # of memory, or a kernel: the others go on
            bad += 1
            rows.append(_left_out(subject, f"{type(error).__name__}: {error}"[:300]))
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()
    schema.write(path, schema.document("tick", about, rows))
    timed = sum(r["us_p50"] is not None for r in rows)
    return bad == 0, f"{timed} of {len(rows)} runs timed; {about['check']}"


def _asked(subject: Subject, asked: argparse.Namespace) -> bool:
    return not asked.dtype or subject.dtype in asked.dtype


def _left_out(subject: Subject, why: str) -> dict[str, Any]:
    return {
        "op": "tick",
        "case": subject.case,
        "dtype": subject.dtype,
        "provider": "microturn",
        "us_p20": None,
        "us_p50": None,
        "us_p80": None,
        "note": why or "unknown",
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this part adds to a command line."""
    parser.add_argument("--free-ticks", type=int, default=2000, help="of each free run")
    parser.add_argument(
        "--real-ticks", type=int, default=0, help="of 100 ms, each model of many sessions"
    )


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m microturn.bench.gpu_tick")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=560.0)
    arguments(parser)
    asked = parser.parse_args(given)
    asked.out.mkdir(parents=True, exist_ok=True)
    good, says = run(asked, asked.seconds)
    print(f"tick   {'ok    ' if good else 'FAILED'}  {says}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
