"""`microturn-bench interactivity`: who says the right thing at the right time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microturn.bench.cli_ops import finish
from microturn.runtime.cli.errors import usage_errors

if TYPE_CHECKING:
    from microturn.bench.interactivity.suite import Ear


def interactivity(
    task: Annotated[
        list[str] | None, typer.Option("--task", help="A task; repeat for several. Else all.")
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider", help="microturn, harness or silent; repeat for several. Else all."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Scenes of each task.")] = 300,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    condition: Annotated[
        str, typer.Option(help="clean, noise (10 dB), room, or leak (its own voice at -30 dB).")
    ] = "clean",
    preset: Annotated[str, typer.Option(help="A named model.")] = "interaction-tiny",
    checkpoint: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    turn_checkpoint: Annotated[
        Path | None, typer.Option(help="Weights trained in turn format, for the harness.")
    ] = None,
    audio: Annotated[
        bool, typer.Option("--audio/--text-only", help="Also score what a recogniser hears.")
    ] = True,
    listen: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write clips and a page of timelines.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the document here.")] = None,
) -> None:
    """Play the scenes of the benchmark to the model and to a turn-based harness, and score both."""
    from microturn.bench import schema
    from microturn.bench.interactivity import suite
    from microturn.bench.interactivity.page import Page
    from microturn.bench.interactivity.players import PROVIDERS, player
    from microturn.bench.interactivity.tasks import TASKS, make_scene
    from microturn.bench.machine import meta

    plan = suite.Plan(tuple(task or TASKS), count, split, condition)
    page = Page(listen) if listen else None
    rows: list[dict[str, Any]] = []
    with usage_errors(ValueError, OSError, ModuleNotFoundError):
        for which in plan.tasks:
            make_scene(which, split, 0, condition=plan.room)  # unknown names, before the long part
        ear = _ear() if audio else None
        for name in provider or PROVIDERS:
            weights = turn_checkpoint or checkpoint if name == "harness" else checkpoint
            keep = partial(page.add, name) if page else _ignore
            with player(name, preset, weights, condition) as (play, note):
                for which, by, marks in suite.run(plan, play, ear, keep):
                    rows.append(suite.row(plan, name, which, by, marks, note))
                    typer.echo(f"  {name} {which} {by}: {rows[-1]['score']:.1f} %", err=True)
    document = schema.document("interactivity", meta(threads=1), rows)
    _table(document)
    if page is not None:
        typer.echo(f"listen: {page.write()}")
    finish(document, out)


def _ignore(played: Any) -> None:
    pass


def _ear() -> Ear:
    from microturn.bench.interactivity.recogniser import Recogniser
    from microturn.bench.interactivity.vocabulary import SPOKEN

    return Recogniser(SPOKEN).hear


def _table(document: dict[str, Any]) -> None:
    from microturn.bench import tables
    from microturn.bench.interactivity.suite import PUBLISHED, WORDS

    lines = []
    for row in document["rows"]:
        fields = dict(part.split("=") for part in row["case"].split(","))
        published = PUBLISHED.get(fields["task"])
        figure = {"microturn": 0, "harness": 1, "silent": 2}[row["provider"]]
        lines.append(
            {
                "task": fields["task"],
                "provider": row["provider"],
                "scored": fields["scored"],
                "score": f"{row['score']:.1f}",
                "interval": f"{row['low']:.1f} to {row['high']:.1f}",
                "n": str(row["count"]),
                "published": "" if published is None else f"{published[figure]:.1f}",
            }
        )
    titles = {name: name for name in ("task", "provider", "scored", "score", "interval", "n")}
    tables.show(titles | {"published": "published"}, lines, left=3)
    typer.echo(f"published: of other systems on other data. {WORDS}")
