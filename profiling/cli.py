"""The `microturn-profile` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from microturn.profiling.cli_plan import plan
from microturn.profiling.screen import WIDTH, on_screen
from microturn.runtime.cli.errors import OneLineErrors, usage_errors

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def profile() -> None:
    """Say where a tick's time goes, what it could be, and what changed."""


@app.command()
def run(
    out: Annotated[
        Path, typer.Option(help="Folder for profile.json, trace.json, report.html and report.md.")
    ],
    preset: Annotated[str, typer.Option(help="A named model.")] = "interaction-tiny",
    checkpoint: Annotated[Path | None, typer.Option(help="Its weights; else seeded.")] = None,
    sessions: Annotated[
        str, typer.Option(help="Live sessions; several: 1,2,3 are swept, the most taken apart.")
    ] = "1",
    ticks: Annotated[int, typer.Option(min=1, help="Ticks to record.")] = 50,
    sweep_ticks: Annotated[
        int, typer.Option(min=1, help="Held out at each number, to compare predictions with.")
    ] = 8,
    tick_ms: Annotated[int, typer.Option(help="Length of a tick.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, weights and sampling.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of the step.")] = 1,
) -> None:
    """Run noise through a model on the CPU and account for its ticks: phases, parts, ops."""
    from microturn.model.interaction import load_family
    from microturn.profiling import document, findings, report
    from microturn.profiling.capture import Asked, capture, counts

    with usage_errors(ValueError, KeyError, OSError, MemoryError):
        swept = counts(sessions)
        family = load_family(None if checkpoint else preset, checkpoint, tick_ms=tick_ms, seed=seed)
        out.mkdir(parents=True, exist_ok=True)
    trace = out / "trace.json"
    made = capture(family, Asked(swept, ticks, sweep_ticks, seed, threads, trace))
    console = Console(width=WIDTH)
    weights = "trained" if family.trained else "untrained"
    told = f"{made['case']} on {made['device']}, {threads} torch threads, {weights} weights\n"
    console.print(told, highlight=False, soft_wrap=True)
    for sentence in findings.summary(made):
        console.print(sentence, highlight=False)
    console.print("\nwhat would help most", highlight=False)
    for text in findings.advice(made):
        console.print(f"- {text}", highlight=False)
    paths = (document.save(made, out), trace, *report.write(made, out))
    console.print(
        f"\nwrote {', '.join(str(path) for path in paths)}", highlight=False, soft_wrap=True
    )


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="Folder of the profile before.")],
    after: Annotated[Path, typer.Argument(help="Folder of the profile after.")],
    out: Annotated[Path | None, typer.Option(help="Also write the comparison here, JSON.")] = None,
) -> None:
    """Say what changed between two profiles, and how sure that is.

    Record both on the same machine, one right after the other, 50 ticks or more.
    """
    from microturn.profiling import diff, document

    with usage_errors(ValueError, OSError):
        found = diff.diff(document.load(before), document.load(after))
        if out is not None:
            out.write_text(diff.to_json(found), "utf-8")
    console = Console(width=WIDTH)
    for sentence in diff.sentences(found):
        console.print(sentence, highlight=False)
    console.print(on_screen(diff.table(found)))


app.command("plan")(plan)


def main() -> None:
    """The console script."""
    app()
