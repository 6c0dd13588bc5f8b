"""`microturn-profile plan`: what a machine that is not at hand would hold."""

from __future__ import annotations

from enum import StrEnum
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


def own_window(preset: str) -> int:
    """Keys that global layers of a preset see. Raises ValueError."""
    from microturn.model.interaction import preset as config_of

    return config_of(preset).trunk.global_window


class Style(StrEnum):
    """Of the table."""

    markdown = "markdown"
    screen = "screen"


def plan(
    preset: Annotated[str, typer.Option(help="A named model.")] = "interaction-small",
    gpu: Annotated[str, typer.Option(help="Kind of GPU, by its datasheet: H100, 4090.")] = "H100",
    count: Annotated[
        int | None, typer.Option(min=1, help="GPUs that share the model: 8, of a profile 1.")
    ] = None,
    tick_ms: Annotated[int, typer.Option(help="Length of a tick.")] = 100,
    context: Annotated[
        int | None,
        typer.Option(
            min=1, help="Keys that global layers see: 8192, of a profile the model's own."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights: fp8, bf16; of a profiled CPU fp32.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Of a machine, in place of --gpu: see `run`.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Compare with this document of microturn-bench capacity.")
    ] = None,
    attained: Annotated[
        float | None, typer.Option(help="Fraction of the datasheet's rates to count on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the plan here, JSON.")] = None,
    table: Annotated[
        Style | None, typer.Option(help="Sessions of presets on every known kind of GPU.")
    ] = None,
) -> None:
    """Say how many sessions would fit, and what would bind. Nothing is measured. Exit code 1 where
    a measured capacity is more than 15 % off.
    """
    from microturn.profiling import agreement, document
    from microturn.profiling import plan as planning
    from microturn.profiling.gpus import GPUS
    from microturn.profiling.gpus import gpu as named
    from microturn.profiling.report import markdown_table
    from microturn.runtime import machine

    console = Console(width=WIDTH)
    if table:
        found = planning.sizing(GPUS.values(), SIZED)
        if table is Style.screen:
            console.print(on_screen(found))
        else:
            console.print("\n".join(markdown_table(found)), highlight=False, soft_wrap=True)
        return
    with usage_errors(ValueError, OSError):
        capacity = None if measured is None else agreement.load(measured)
        kind, rates = named(gpu), None
        if profile is not None:
            memory = machine.memory_bytes()[0] / 1e9
            if capacity is not None:
                memory = capacity["meta"].get("memory_gb", memory)
            kind, rates = planning.rates_of(document.load(profile), memory)
        made = planning.plan(
            preset,
            kind,
            count=count or (8 if rates is None else 1),
            tick_ms=tick_ms,
            context=context or (8192 if rates is None else own_window(preset)),
            dtype=dtype or ("fp8" if rates is None else "fp32"),
            attained=planning.ATTAINED if attained is None else attained,
            rates=rates,
            at=() if capacity is None else agreement.sessions(capacity),
        )
        agreed = None if capacity is None else agreement.compare(made, capacity)
        if out is not None:
            out.write_text(planning.to_json(made), "utf-8")
    console.print(planning.sentence(made), highlight=False)
    for cells in (planning.levels(made), planning.numbers(made)):
        console.print()
        console.print(on_screen(cells))
    if agreed is not None:
        console.print()
        console.print(on_screen(agreement.table(agreed)))
        console.print(agreement.sentence(agreed), highlight=False)
        if not agreed.holds:
            raise typer.Exit(1)
