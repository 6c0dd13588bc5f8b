"""The `microturn-bench` command: a card, a table, then one JSON document as the last line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from microturn.bench import cli_ops, cli_system
from microturn.bench.cli_interactivity import interactivity
from microturn.bench.cli_ops import finish
from microturn.runtime.cli.errors import OneLineErrors, usage_errors

WIDTH = 120
SUITES = {
    "ops": "each op beside its peers, checked and timed: run, report, compile, predict",
    "tick": "whole ticks of the runtime: step times, slack, deadline misses",
    "capacity": "the largest number of sessions held at a tick and a miss rate",
    "load": "sessions arrive at a rate that rises to twice what is held",
    "soak": "sessions that stay: misses, and what grows with age",
    "loading": "a random release made on the spot: GB/s, peak memory while it loads",
    "interactivity": "who says the right thing at the right time: the model, and a harness",
    "weights": "the error of weights stored as bf16 and fp8, on random layers",
}

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure microturn. Tables are for people; the last line of stdout is one JSON document.",
)


Out = Annotated[
    Path | None,
    typer.Option(help="Write the document here; committed results are bench/results/<device>/."),
]


@app.command()
def tick(
    preset: Annotated[str, typer.Option(help="A named model.")] = "interaction-tiny",
    checkpoint: Annotated[Path | None, typer.Option(help="Its weights; else seeded.")] = None,
    ticks: Annotated[int, typer.Option(min=1, help="3000 of 100 ms are five minutes.")] = 3000,
    sessions: Annotated[int, typer.Option(min=1, help="Live sessions in every tick.")] = 1,
    tick_ms: Annotated[int, typer.Option(help="Length of a tick.")] = 100,
    realtime: Annotated[
        bool,
        typer.Option("--realtime/--fast", help="On the real clock, or tick after tick."),
    ] = True,
    heard: Annotated[
        Path | None, typer.Option("--input", help="A recording to loop; else seeded noise.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, weights and sampling.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of the step.")] = 1,
    out: Out = None,
) -> None:
    """Time whole ticks and count deadline misses."""
    from microturn.bench.tick import CheckFailed, TickRun, document
    from microturn.model.interaction import load_family, num_parameters
    from microturn.runtime.cli.audio import read_recording
    from microturn.runtime.cli.live import Status, view

    with usage_errors(ValueError, KeyError, OSError, MemoryError):
        family = load_family(None if checkpoint else preset, checkpoint, tick_ms=tick_ms, seed=seed)
    run = TickRun(
        family=family,
        preset=family.name,
        ticks=ticks,
        sessions=sessions,
        realtime=realtime,
        seed=seed,
        threads=threads,
        recording=None if heard is None else read_recording(heard),
    )
    typer.echo(
        f"{run.case}: {ticks} ticks, {'real clock' if realtime else 'flat out'}, "
        f"{num_parameters(family.config) / 1e6:.1f} M parameters, "
        f"{sum(spec.bytes_per_slot for spec in family.arena_specs()) / 1e6:.1f} MB a session, "
        f"{'trained' if family.trained else 'untrained'} weights"
    )
    progress = Console(stderr=True)
    status = Status(run.case, tick_ms, not family.trained, total_ms=ticks * tick_ms)
    with view(progress) as shown:

        def watch(output: Any) -> None:
            status.follow(output)
            shown.show(status)

        try:
            made = document(run, watch)
        except CheckFailed as error:
            typer.echo(f"check failed, nothing was timed: {error}", err=True)
            raise typer.Exit(1) from None
    _print_ticks(made)
    finish(made, out)


@app.command()
def loading(
    gigabytes: Annotated[float, typer.Option(min=0.1, help="Of the checkpoint's files.")] = 4.0,
    weights: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16 or fp8; repeat for several.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to make it; else the temporary folder.")
    ] = None,
    out: Out = None,
) -> None:
    """Load a random checkpoint of the released layout in a process of its own: speed and peak
    memory.
    """
    from microturn.bench.loading import LoadingFailed, document
    from microturn.model.checkpoint.quantization import check_weight_dtype

    wanted = tuple(weights or ("fp32", "fp8"))
    with usage_errors(ValueError, OSError, MemoryError):
        for dtype in wanted:
            check_weight_dtype(dtype)
        try:
            made = document(int(1e9 * gigabytes), wanted, folder)
        except LoadingFailed as error:
            typer.echo(f"check failed: {error}", err=True)
            raise typer.Exit(1) from None
    columns = {
        "case": "case",
        "gb_per_s": "GB/s",
        "file_bytes": "file GB",
        "model_bytes": "model GB",
        "peak_bytes": "peak GB",
        "over_bytes": "peak less model GB",
    }
    _print_rows(made, columns, lambda k, v: f"{v / 1e9:.2f}" if k.endswith("bytes") else str(v))
    finish(made, out)


@app.command()
def weights(out: Out = None) -> None:
    """Store random layers of the released shapes as fp32, bf16 and fp8, and show the error of
    each.
    """
    from microturn.bench.weights import document

    made = document()
    columns = {
        "case": "case",
        "dtype": "stored as",
        "bits": "bits",
        "weight_error": "weights",
        "output_error": "outputs",
        "max_error": "largest",
    }
    _print_rows(made, columns, lambda k, v: f"{v:.2e}" if k.endswith("error") else str(v))
    finish(made, out)


app.command()(cli_ops.run)
app.command()(cli_ops.report)
app.command("compile")(cli_ops.compile_)
app.command()(cli_ops.predict)
app.command()(cli_system.capacity)
app.command()(cli_system.load)
app.command()(cli_system.soak)
app.command()(interactivity)


@app.command("list")
def list_(
    op: Annotated[str | None, typer.Option(help="Show the cases of one op.")] = None,
) -> None:
    """List the suites, the providers, and the ops with their cases, flops, bytes and bars."""
    from microturn.bench import rows, tables
    from microturn.bench.providers.every import every
    from microturn.bench.subjects import get, subjects
    from microturn.bench.subjects import nbytes as bytes_of

    with usage_errors(KeyError):
        shown = subjects() if op is None else {op: get(op)}
    document: dict[str, Any] = {
        "suites": list(SUITES),
        "providers": [p.name for p in every()],
        "ops": {},
        "bench": {},
    }
    lines = []
    for name, entry in shown.items():
        for key, dtype, cases in (
            ("bench", entry.dtypes[0], entry.bench_cases),
            ("ops", "fp32", entry.cases),
        ):
            document[key][name] = []
            for c in cases:
                nbytes = c.bytes(4) if dtype == "fp32" else bytes_of(c, dtype)
                bars = {d: rows.asked(rows.bar_of(c, entry.dtypes, d)) for d in entry.dtypes}
                document[key][name].append(
                    {"case": c.id, "flops": c.flops, f"bytes_{dtype}": nbytes, "reason": c.reason}
                    | {"bars": {d: bar for d, bar in bars.items() if bar}}
                )
                lines.append(
                    {
                        "op": name,
                        "case": c.id,
                        "dtypes": " ".join(entry.dtypes) if key == "bench" else "small",
                        "flops": f"{c.flops / 1e6:.4g}",
                        "bytes": f"{nbytes / 1e6:.4g}",
                        "bar": "; ".join(f"{d} {tables.bar_text(b)}" for d, b in bars.items() if b),
                        "reason": c.reason,
                    }
                )
    if op is None:
        tables.show(
            {"name": "suite", "what": "what it measures"},
            [{"name": name, "what": what} for name, what in SUITES.items()],
            left=2,
        )
        typer.echo(f"\nproviders: {', '.join(document['providers'])}\n")
    titles = {"op": "op", "case": "case", "dtypes": "in", "reason": "reason"}
    tables.show(titles | {"flops": "MFLOP", "bytes": "MB", "bar": "bar"}, lines, left=4)
    typer.echo(json.dumps(document))


def _print_rows(
    made: dict[str, Any], columns: dict[str, str], text: Callable[[str, Any], str]
) -> None:
    table = Table(box=None, header_style="bold")
    for key, title in columns.items():
        table.add_column(title, justify="left" if key == "case" else "right", overflow="fold")
    for row in made["rows"]:
        table.add_row(*(text(key, row[key]) for key in columns))
    Console(width=WIDTH).print(table)


def _print_ticks(document: dict[str, Any]) -> None:
    meta = document["meta"]
    typer.echo(
        f"{meta['device']}, {meta['threads']} torch threads, version {meta['torch']}, "
        f"git {meta['git']}, load before {meta['load_1min_before']}"
    )
    columns = {
        "step_ms_p50": "p50",
        "step_ms_p99": "p99",
        "step_ms_p999": "p99.9",
        "step_ms_max": "max ms",
        "slack_ms_min": "least slack",
        "wake_ms_p99": "wake p99",
        "ticks": "ticks",
        "misses": "misses",
        "miss_rate_upper95": "miss rate <=",
    }
    table = Table(box=None, header_style="bold")
    table.add_column("case", no_wrap=True)
    for title in columns.values():
        table.add_column(title, justify="right")
    for row in document["rows"]:
        values = (row[field] for field in columns)
        table.add_row(
            row["case"],
            *(f"{v:.3g}" if isinstance(v, float) and v < 1 else f"{v:.5g}" for v in values),
        )
    Console(width=WIDTH).print(table)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
