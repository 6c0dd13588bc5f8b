"""`microturn-bench interactivity`: who says the right thing at the right time."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microturn.bench.cli_ops import finish
from microturn.runtime.cli.errors import usage_errors

if TYPE_CHECKING:
    from microturn.bench.interactivity.ledger import Ledger
    from microturn.bench.interactivity.players import Player
    from microturn.bench.interactivity.suite import Plan


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
    scenes: Annotated[int, typer.Option(min=1, help="Of each task and condition.")] = 300,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition",
            help="clean, noise (10 dB), room, or leak (its own voice at -30 dB); repeat for "
            "several. Else clean.",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="A named model.")] = "interaction-tiny",
    checkpoint: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    turn_checkpoint: Annotated[
        Path | None, typer.Option(help="Weights trained in turn format, for the harness.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of the text that is drawn; 0 takes the likeliest.")
    ] = 0.0,
    audio: Annotated[
        bool, typer.Option("--audio/--text-only", help="Also score what a recogniser hears.")
    ] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes, of a core each.")] = 2,
    lanes: Annotated[int, typer.Option(min=1, help="Sessions side by side in each.")] = 16,
    answers: Annotated[
        Path | None,
        typer.Option(help="Add raw answers to this file, and go on with those that it holds."),
    ] = None,
    listen: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write clips and a page of timelines.")
    ] = None,
    charts: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw charts here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the document here.")] = None,
) -> None:
    """Play the scenes of the benchmark to the model and to a turn-based harness, and score both."""
    from microturn.bench import schema
    from microturn.bench.interactivity import suite
    from microturn.bench.interactivity.crew import Work
    from microturn.bench.interactivity.ledger import Ledger
    from microturn.bench.interactivity.page import Page
    from microturn.bench.interactivity.players import PROVIDERS, Player
    from microturn.bench.interactivity.tasks import TASKS
    from microturn.bench.machine import meta

    plan = suite.Plan(tuple(task or TASKS), scenes, split, tuple(condition or ["clean"]))
    notes: dict[str, str] = {}
    with usage_errors(ValueError, OSError, ModuleNotFoundError):
        for job in replace(plan, count=1).jobs():
            job.scene()  # unknown names, before the long part
        ledger = Ledger(answers)
        for name in provider or PROVIDERS:
            weights = turn_checkpoint or checkpoint if name == "harness" else checkpoint
            path = None if weights is None else str(weights)
            player = Player(name, preset, path, lanes=lanes, temperature=temperature)
            player, notes[name] = _prepared(player, audio, ledger)
            _play(Work(player, audio, listen), plan, ledger, workers)
    rows = suite.rows(plan, ledger.answers.values(), notes)
    document = schema.document("interactivity", meta(threads=1), rows)
    _table(document)
    if listen is not None:
        typer.echo(f"listen: {Page(listen).write()}")
    if charts is not None:
        from microturn.bench.interactivity.charts import draw

        for chart in draw(document, list(ledger.answers.values()), charts):
            typer.echo(f"chart: {chart}")
    finish(document, out)


def _prepared(player: Player, audio: bool, ledger: Ledger) -> tuple[Player, str]:
    """The player as it is to play, and what to note about it. Rules are tuned once a ledger."""
    from microturn.bench.interactivity.harness import Rules
    from microturn.bench.interactivity.tuning import FAIR_RIGHT, FAIR_TAKE_OVER

    if player.name == "silent":
        return player, "says nothing"
    trained = player.trained()
    settings: dict[str, Any] = {
        "weights": _digest(player),
        "temperature": player.temperature,
        "audio": audio,
    }
    note = "trained weights" if trained else "untrained weights"
    if player.name == "harness":
        before = ledger.known("harness") or {}
        if "rules" in before:
            settings["rules"], settings["tuned"] = before["rules"], before["tuned"]
        elif trained:  # noise has no best rules
            tuned = player.tune()
            settings["rules"] = asdict(tuned.rules)
            settings["tuned"] = {
                name: round(tuned.marks[name].mean, 4) for name in ("take_over", "score")
            }
        else:
            settings["rules"], settings["tuned"] = asdict(Rules()), None
        player = replace(player, rules=Rules(**settings["rules"]))
        note = f"{note}; {player.rules}"
        if settings["tuned"] is not None:
            took, right = (settings["tuned"][name] for name in ("take_over", "score"))
            fair = took >= FAIR_TAKE_OVER and right >= FAIR_RIGHT
            note += (
                f", tuned on validation: take-over {took:.2f}, {100 * right:.0f} % of plain "
                f"questions right, {'a fair' if fair else 'no fair'} opponent"
            )
    ledger.settings(player.name, settings)
    return player, note


def _digest(player: Player) -> str:
    """A name of the weights: a preset's, or a hash of the files of a checkpoint."""
    if player.checkpoint is None:
        return player.preset
    sha = hashlib.sha256()
    for path in sorted(Path(player.checkpoint).glob("*.safetensors")):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def _play(work: Any, plan: Plan, ledger: Ledger, workers: int) -> None:
    """What is missing in the ledger, with a bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    name = work.player.name
    jobs = list(plan.jobs())
    missing = [job for job in jobs if (name, job) not in ledger.answers]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task(name, total=len(jobs), completed=len(jobs) - len(missing))
        for answer in work.shared(missing, workers):
            ledger.add(answer)
            bar.advance(shown)


def _table(document: dict[str, Any]) -> None:
    from microturn.bench import tables
    from microturn.bench.interactivity.suite import PUBLISHED, WORDS

    lines = []
    for row in document["rows"]:
        fields = dict(part.split("=") for part in row["case"].split(","))
        published = PUBLISHED.get(fields["task"])
        lines.append(
            {
                "task": fields["task"],
                "provider": row["provider"],
                "condition": fields["condition"],
                "scored": fields["scored"],
                "score": f"{row['score']:.1f}",
                "interval": f"{row['low']:.1f} to {row['high']:.1f}",
                "n": str(row["count"]),
                "published": "" if published is None else f"{published.of(row['provider']):.1f}",
            }
        )
    titles = {name: name for name in lines[0]}
    tables.show(titles, lines, left=4)
    typer.echo(f"published: of other systems on other data. {WORDS}")
