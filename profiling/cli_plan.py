"""`microturn-profile plan`: what a machine that is not at hand would hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from microturn.profiling.screen import WIDTH, on_screen
from microturn.runtime.cli.errors import usage_errors

SIZED = tuple(
    (preset, dtype, 100, 8192)
    for preset in ("interaction-small", "interaction-mini")
    for dtype in ("fp8", "bf16")
)
"""Columns of the table: preset, dtype, tick_ms, context."""


def plan(
    preset: Annotated[str, typer.Option(help="A named model.")] = "interaction-small",
    gpu: Annotated[str, typer.Option(help="Kind of GPU, by its datasheet: H100, 4090.")] = "H100",
    count: Annotated[int, typer.Option(min=1, help="GPUs that share the model.")] = 8,
    tick_ms: Annotated[int, typer.Option(help="Length of a tick.")] = 100,
    context: Annotated[int, typer.Option(min=1, help="Keys that global layers see.")] = 8192,
    dtype: Annotated[str, typer.Option(help="Of the weights: bf16 or fp8.")] = "fp8",
    attained: Annotated[
        float | None, typer.Option(help="Fraction of the datasheet's rates to count on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the plan here, JSON.")] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Sessions of presets on every known kind of GPU.")
    ] = False,
) -> None:
    """Say how many sessions would fit, and what would bind. Nothing is measured."""
    from microturn.profiling import plan as planning
    from microturn.profiling.gpus import GPUS
    from microturn.profiling.gpus import gpu as named
    from microturn.profiling.report import markdown_table

    console = Console(width=WIDTH)
    if table:
        found = planning.sizing(GPUS.values(), SIZED)
        console.print("\n".join(markdown_table(found)), highlight=False, soft_wrap=True)
        return
    with usage_errors(ValueError, OSError):
        made = planning.plan(
            preset,
            named(gpu),
            count=count,
            tick_ms=tick_ms,
            context=context,
            dtype=dtype,
            attained=planning.ATTAINED if attained is None else attained,
        )
        if out is not None:
            out.write_text(planning.to_json(made), "utf-8")
    console.print(planning.sentence(made), highlight=False)
    for cells in (planning.levels(made), planning.numbers(made)):
        console.print()
        console.print(on_screen(cells))
