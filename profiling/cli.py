"""The `microturn-profile` command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from microturn.runtime.cli.errors import OneLineErrors, usage_errors

if TYPE_CHECKING:
    from microturn.profiling.capture import Capture

BAR_CELLS = 40
WIDTH = 100

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def profile() -> None:
    """Say where a tick's time goes."""


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder for profile.json and trace.json.")],
    preset: Annotated[str, typer.Option(help="A named model.")] = "interaction-tiny",
    checkpoint: Annotated[Path | None, typer.Option(help="Its weights; else seeded.")] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Live sessions in every tick.")] = 1,
    ticks: Annotated[int, typer.Option(min=1, help="Ticks to account for.")] = 200,
    tick_ms: Annotated[int, typer.Option(help="Length of a tick.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, weights and sampling.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of the step.")] = 1,
) -> None:
    """Run noise through a model and account for its ticks: phases, then ops."""
    from microturn.model.interaction import load_family
    from microturn.profiling.capture import capture
    from microturn.runtime import machine
    from microturn.runtime.versions import versions

    with usage_errors(ValueError, KeyError, OSError, MemoryError):
        family = load_family(None if checkpoint else preset, checkpoint, tick_ms=tick_ms, seed=seed)
        out.mkdir(parents=True, exist_ok=True)
    made = capture(
        family,
        sessions=sessions,
        ticks=ticks,
        seed=seed,
        threads=threads,
        trace=out / "trace.json",
    )
    case = f"preset={family.name},S={sessions},tick_ms={tick_ms}"
    weights = "trained" if family.trained else "untrained"
    console = Console(width=WIDTH)
    device = machine.device_name()
    console.print(
        f"{case} on {device}, {threads} torch threads, {weights} weights, {ticks} ticks\n",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_waterfall(made.phases, tick_ms))
    console.print(
        f"\nops a tick, over {made.profiled_ticks} ticks under the profiler "
        f"(step {made.profiled_step_ms:.1f} ms there, {made.step_ms:.1f} ms without)\n",
        highlight=False,
    )
    console.print(_ops(made))
    document = {
        "schema": 1,
        "case": case,
        "untrained": not family.trained,
        "ticks": ticks,
        "threads": threads,
        "device": device,
        "versions": versions(),
        **made.to_dict(),
    }
    path = out / "profile.json"
    path.write_text(json.dumps(document, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    console.print(f"\nwrote {path} and {out / 'trace.json'}", highlight=False, soft_wrap=True)


def _waterfall(phases: Mapping[str, Mapping[str, float]], tick_ms: int) -> Table:
    """The median tick, phase after phase, on the scale of the period."""
    table = Table(box=None, header_style="bold")
    table.add_column("phase")
    for title in ("p50 ms", "p99 ms", "max ms"):
        table.add_column(title, justify="right")
    table.add_column(f"0 to {tick_ms} ms")
    at = 0.0
    for name, found in phases.items():
        start, stop = (round(BAR_CELLS * ms / tick_ms) for ms in (at, at + found["p50"]))
        bar = " " * start + ("█" * (stop - start) or "▏")
        numbers = (f"{found[key]:.3f}" for key in ("p50", "p99", "max"))
        table.add_row(name, *numbers, bar[:BAR_CELLS])
        at += found["p50"]
    return table


def _ops(made: Capture) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("op")
    for title in ("calls", "torch calls", "ms", "share"):
        table.add_column(title, justify="right")
    for op in made.ops:
        table.add_row(
            op.op, f"{op.calls:g}", f"{op.torch_calls:g}", f"{op.ms:.2f}", f"{op.share:.1%}"
        )
    outside = made.outside_ms
    table.add_row("in no op", "", "", f"{outside:.2f}", f"{outside / made.profiled_step_ms:.1%}")
    return table


def main() -> None:
    """The console script."""
    app()
