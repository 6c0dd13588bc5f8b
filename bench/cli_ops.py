"""Commands about ops: run, report, compile, predict."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from microturn.bench.rows import Row
from microturn.runtime.cli.errors import UsageError, usage_errors

Ops = Annotated[list[str] | None, typer.Option("--op", help="An op; repeat for several.")]
Cases = Annotated[
    list[str] | None,
    typer.Option("--case", help="Parts of a case, as T=8,H=4096; repeat for several."),
]
Dtypes = Annotated[list[str] | None, typer.Option("--dtype", help="bf16, fp8; fp32 on a CPU.")]
Quiet = Annotated[bool, typer.Option("--json", help="Only the document, no table.")]
Out = Annotated[Path | None, typer.Option(help="Write the document here.")]


def run(
    op: Ops = None,
    case: Cases = None,
    dtype: Dtypes = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="Who computes it; repeat for several. Else all but the reference."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="REV", help="Also this revision's kernels, in turn.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    small: Annotated[
        bool | None,
        typer.Option("--small/--real", help="The tests' shapes, or the models'. Small on a CPU."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="To spend on one time; else by device.")
    ] = None,
    box: Annotated[
        float | None, typer.Option(min=1, help="Seconds after which no new case begins.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs.")] = 0,
    json: Quiet = False,
    out: Out = None,
) -> None:
    """Check each op against its reference, then time it beside its peers.

    Exit code 1 when a result of microturn is wrong.
    """
    from microturn.bench import base as other
    from microturn.bench import ops, tables
    from microturn.bench import run as suite
    from microturn.bench.providers.every import names
    from microturn.bench.subjects import select

    with usage_errors(ValueError, KeyError, RuntimeError):
        where = _device(device)
        tiny = where == "cpu" if small is None else small
        items = select(op or (), case or (), dtype or (), small=tiny)
        wanted = names(provider or ())
    if base is not None and provider:
        raise UsageError("--base compares microturn with itself; leave --provider out")

    def watch(item: Any, found: Sequence[Row]) -> None:
        times = ", ".join(f"{r['provider']} {_us(r)}" for r in found)
        print(f"  {' '.join(item)}: {times}", file=sys.stderr, flush=True)

    quiet = (lambda item, found: None) if json else watch
    if base is None:
        with suite.measurer(where, seconds=seconds, seed=seed) as measurer:
            found = suite.run(measurer, items, wanted, box_seconds=box, watch=quiet)
            _need(found, items, wanted)
            made = suite.document(measurer, where, found)
    else:
        with (
            usage_errors(other.NoSuchRevision),
            other.workers(base, where, seconds=seconds, seed=seed) as (ours, theirs),
        ):
            found = []
            for item in items:
                new = other.measure(ours, theirs, item)
                found += new
                quiet(item, new)
            made = suite.document(ours, where, found, more={"base": base})
    if not json:
        meta = made["meta"]
        typer.echo(f"{meta['device']}, torch {meta['torch']}, git {meta['git']}")
        typer.echo(f"ceilings {meta['ceilings']}; {meta['timing']}")
        tables.ops(made["rows"])
    finish(made, out)
    if wrong := ops.failed(found):
        for row in wrong:
            typer.echo(f"{row['op']} {row['case']} {row['dtype']}: {row['note']}", err=True)
        raise typer.Exit(1)


def finish(made: dict[str, Any], out: Path | None) -> None:
    """The document: into its file, and as the last line."""
    from microturn.bench import schema

    if out is not None:
        with usage_errors(OSError):
            schema.write(out, made)
    typer.echo(schema.dumps(made))


def _device(asked: str) -> str:
    """Raises ValueError."""
    import torch

    there = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if there else "cpu"
    if asked not in ("cpu", "cuda"):
        raise ValueError(f"--device is auto, cpu or cuda, got {asked!r}")
    if asked == "cuda" and not there:
        raise ValueError("--device cuda: torch sees no GPU here; `microturn doctor` says more")
    return asked


def _need(found: Sequence[Row], items: Sequence[Any], wanted: Sequence[str]) -> None:
    if not found:
        asked = sorted({item.op for item in items})
        raise UsageError(f"none of {', '.join(wanted)} computes {', '.join(asked)}")


def _us(row: Row) -> str:
    return "-" if row["us_p50"] is None else f"{row['us_p50']:.4g} us"


def compile_(
    op: Ops = None, case: Cases = None, dtype: Dtypes = None, json: Quiet = False, out: Out = None
) -> None:
    """Compile what every bench case launches for sm_90, on any machine, and show what the binaries
    need. Exit code 1 where one has problems.
    """
    from microturn.bench import compiled, tables
    from microturn.bench.subjects import select

    with usage_errors(ValueError, KeyError):
        items = select(op or (), case or (), dtype or ())
    _compiles()
    found = [compiled.row(item) for item in _told(items)]
    made = compiled.document(found)
    if not json:
        tables.show(compiled.COLUMNS, compiled.lines(found), left=3)
    finish(made, out)
    if any(row["ok"] is False for row in found):
        raise typer.Exit(1)


def predict(
    op: Ops = None, case: Cases = None, dtype: Dtypes = None, json: Quiet = False, out: Out = None
) -> None:
    """Compile every bench case for sm_90 and predict its time on an H200; nothing is measured."""
    from microturn.bench import predict as model
    from microturn.bench import tables
    from microturn.bench.subjects import get, select

    with usage_errors(ValueError, KeyError):
        items = select(op or (), case or (), dtype or ())
    _compiles()
    found = [model.row(get(item.op), item) for item in _told(items)]
    made = model.document(found)
    if not json:
        typer.echo(f"{made['meta']['device']}: a model, nothing here was measured")
        tables.show(model.COLUMNS, [model.line(row) for row in found])
    finish(made, out)


def report(
    results: Annotated[
        list[Path] | None, typer.Argument(help="Documents; else all of bench/results.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the charts; else beside each document.")
    ] = None,
) -> None:
    """Draw charts of ops documents: how near each case comes to its floor, and how many times
    faster than each peer it is.
    """
    from microturn.bench import report as charts

    with usage_errors(ValueError, OSError):
        drawn = charts.draw(results or charts.committed(), out)
    for path in drawn:
        typer.echo(str(path))


def _told(items: Sequence[Any]) -> Iterator[Any]:
    """The items, each named on stderr as its turn comes."""
    for item in items:
        print(f"  {' '.join(item)}", file=sys.stderr, flush=True)
        yield item


def _compiles() -> None:
    import triton

    if triton.knobs.runtime.interpret:
        raise UsageError("unset TRITON_INTERPRET: interpreted kernels have no binary")
