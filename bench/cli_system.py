"""Commands about whole systems over time: capacity, load, soak."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from microturn.bench.cli_ops import finish
from microturn.bench.system import System
from microturn.runtime.cli.errors import usage_errors

Preset = Annotated[str, typer.Option(help="A named model.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Its weights; else seeded.")]
TickMs = Annotated[int, typer.Option(help="Length of a tick.")]
Window = Annotated[int | None, typer.Option(min=1, help="Keys of global layers; else the model's.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto; on cuda bfloat16 or fp8.")]
Seed = Annotated[int, typer.Option(min=0, help="Of arrivals, noise, weights and sampling.")]
Threads = Annotated[int, typer.Option(min=1, help="torch threads of the step.")]
Most = Annotated[int, typer.Option(min=1, help="Slots: never more sessions than this.")]
Chart = Annotated[Path | None, typer.Option(help="Draw a chart here (PNG).")]
Out = Annotated[Path | None, typer.Option(help="Write the document here.")]


def capacity(
    preset: Preset = "interaction-tiny",
    checkpoint: Checkpoint = None,
    tick_ms: TickMs = 100,
    window: Window = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    miss_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Of ticks late or skipped that still holds.")
    ] = 0.0,
    ticks: Annotated[int, typer.Option(min=1, help="That confirm it on the real clock.")] = 3000,
    probe_ticks: Annotated[int, typer.Option(min=10, help="Flat out, for each number.")] = 200,
    margin_ms: Annotated[float, typer.Option(min=0, help="That p99 must leave flat out.")] = 5.0,
    most: Most = 64,
    confirm: Annotated[
        bool, typer.Option("--confirm/--fast", help="On the real clock, or not.")
    ] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="In about a minute: fewer ticks, a weaker bound.")
    ] = False,
    seed: Seed = 0,
    threads: Threads = 1,
    chart: Chart = None,
    out: Out = None,
) -> None:
    """Find the largest number of sessions that this machine holds at a tick and a miss rate."""
    from microturn.bench.capacity import QUICK, document

    if quick:
        ticks, probe_ticks = min(ticks, QUICK.ticks), min(probe_ticks, QUICK.probe_ticks)
    made = document(
        _system(preset, checkpoint, tick_ms, window, device, dtype, seed, threads),
        ticks=ticks,
        probe_ticks=probe_ticks,
        most=most,
        miss_rate=miss_rate,
        margin_ms=margin_ms,
        confirm=confirm,
        told=_tell,
    )
    columns = {
        "busy_ms_p50": "tick p50",
        "busy_ms_p99": "p99 ms",
        "predicted_ms_p50": "foreseen p50",
        "predicted_ms_p99": "p99 ms",
        "ticks": "ticks",
        "misses": "misses",
        "miss_rate_upper95": "rate <=",
        "holds": "holds",
    }
    _show(made, columns)
    typer.echo(f"capacity: {made['meta']['capacity']} sessions at {tick_ms} ms")
    _finish(made, chart, out)


def load(
    sessions: Annotated[
        int | None,
        typer.Option(min=1, help="Offered at first, twice as many in the end; else the capacity."),
    ] = None,
    preset: Preset = "interaction-tiny",
    checkpoint: Checkpoint = None,
    tick_ms: TickMs = 100,
    window: Window = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    stages: Annotated[int, typer.Option(min=1, help="From the first level to the last.")] = 5,
    stage_s: Annotated[float, typer.Option(min=1, help="Seconds of a stage.")] = 120.0,
    stay_s: Annotated[float, typer.Option(min=1, help="Seconds a session stays, mean.")] = 60.0,
    most: Annotated[int, typer.Option(min=0, help="Slots; 0: for all that are offered.")] = 0,
    seed: Seed = 0,
    threads: Threads = 1,
    chart: Chart = None,
    out: Out = None,
) -> None:
    """Let sessions arrive at a rate that rises to twice what is held: who is refused, and whether
    those admitted stay in time.
    """
    from microturn.bench.load import document

    system = _system(preset, checkpoint, tick_ms, window, device, dtype, seed, threads)
    with usage_errors(ValueError):
        offered = sessions or known_capacity(system)
    made = document(
        system,
        sessions=offered,
        most=most or 2 * offered,
        stages=stages,
        stage_s=stage_s,
        stay_s=stay_s,
        told=_tell,
    )
    columns = {
        "offered": "came",
        "refused": "refused",
        "sessions": "live",
        "took_ms_p50": "tick p50",
        "took_ms_p99": "p99 ms",
        "ticks": "ticks",
        "misses": "misses",
        "miss_rate_upper95": "rate <=",
        "late_session_ticks": "late",
        "late_sessions": "who",
        "session_ticks": "of",
        "served": "served",
    }
    _show(made, columns)
    row = made["rows"][-1]
    typer.echo(
        f"{row['offered']} sessions came, {row['refused']} were refused; of the {row['admitted']} "
        f"admitted {row['late_sessions']} were late at some tick; {row['served']:.1%} of all that "
        f"was asked for was given in time, refused sessions included; "
        f"{'holds' if row.get('holds') else 'does not hold'}"
    )
    _finish(made, chart, out)


def soak(
    sessions: Annotated[
        int | None,
        typer.Option(min=1, help="That stay until the end; else 0.8 of the capacity."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="On the real clock.")] = 30.0,
    preset: Preset = "interaction-tiny",
    checkpoint: Checkpoint = None,
    tick_ms: TickMs = 100,
    window: Window = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    threads: Threads = 1,
    chart: Chart = None,
    out: Out = None,
) -> None:
    """Run sessions for long: misses with their bound, whether steps and memory grow with age."""
    from microturn.bench.soak import document

    system = _system(preset, checkpoint, tick_ms, window, device, dtype, seed, threads)
    with usage_errors(ValueError):
        stay = sessions or max(1, int(0.8 * known_capacity(system)))
        made = document(system, sessions=stay, minutes=minutes, told=_tell)
    columns = {
        "step_ms_p50": "step p50",
        "step_ms_p99": "p99",
        "step_ms_max": "max ms",
        "took_ms_p99": "tick p99",
        "ticks": "ticks",
        "misses": "misses",
        "miss_rate_upper95": "rate <=",
        "rss_mb": "MB",
    }
    _show(made, columns)
    row = made["rows"][-1]
    typer.echo(
        f"last minute over first: {row['tail_over_head']:.3f} (steps {row['step_ratio']:.3f}, by "
        f"the host's own {row['host_ratio'] or 1:.3f}); memory grew by "
        f"{row['rss_growth_mb']:.1f} MB; drift {row['drift_ms_max']:.0f} ms; "
        f"{'holds' if row['holds'] else 'does not hold'}"
    )
    _finish(made, chart, out)


def known_capacity(system: System) -> int:
    """As committed for this machine. Raises ValueError when nobody has measured it here."""
    from microturn.runtime.machine import device_name, slug

    folder = Path(__file__).resolve().parent / "results" / slug(device_name(system.device))
    path = folder / "capacity.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": []}
    if not any(row["case"].split(",S=")[0] == f"preset={system.name}" for row in found["rows"]):
        raise ValueError(
            f"--sessions: the capacity of {system.name} on this machine is not known; give a "
            f"number, or write {path} with microturn-bench capacity --out"
        )
    return max(1, int(found["meta"]["capacity"]))


def _system(
    preset: str,
    checkpoint: Path | None,
    tick_ms: int,
    window: int | None,
    device: str,
    dtype: str,
    seed: int,
    threads: int,
) -> System:
    from microturn.bench.system import system_of
    from microturn.model.interaction import load_family
    from microturn.runtime.engines import WEIGHTS, check_cuda
    from microturn.runtime.errors import ConfigError

    with usage_errors(ValueError, KeyError, OSError, MemoryError, ConfigError):
        if dtype not in WEIGHTS.get(device, {}):
            known = "; ".join(f"--device {d}: {', '.join(names)}" for d, names in WEIGHTS.items())
            raise ValueError(f"--device {device} does not compute in {dtype!r}; known: {known}")
        if device == "cuda":
            check_cuda()
        family = load_family(
            None if checkpoint else preset, checkpoint, tick_ms=tick_ms, seed=seed, window=window
        )
    return system_of(family, seed=seed, threads=threads, device=device, dtype=dtype)


def _tell(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _show(made: dict[str, Any], columns: Mapping[str, str]) -> None:
    from microturn.bench import tables

    meta = made["meta"]
    typer.echo(
        f"{meta['device']}, {meta['threads']} torch threads, version {meta['torch']}, "
        f"git {meta['git']}, load before {meta['load_1min_before']}"
    )
    lines = [
        {"case": row["case"], **{key: _text(row.get(key)) for key in columns}}
        for row in made["rows"]
    ]
    tables.show({"case": "case", **columns}, lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < value < 0.01 else f"{value:.4g}"
    return str(value)


def _finish(made: dict[str, Any], chart: Path | None, out: Path | None) -> None:
    if chart is not None:
        from microturn.bench.system_charts import draw

        with usage_errors(OSError):
            draw(made, chart)
        typer.echo(str(chart))
    finish(made, out)
