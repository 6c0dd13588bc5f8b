"""`python -m microturn.bench.training`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from microturn.bench.training import model as joint
from microturn.bench.training.codec import Recipe, Training, train
from microturn.bench.training.codec_eval import evaluate
from microturn.bench.training.curriculum import Recipe as ModelRecipe
from microturn.bench.training.lexicon import Lexicon
from microturn.bench.training.speaking import voicing
from microturn.model.interaction import load_family
from microturn.model.interaction.learnt import read_learnt, write_learnt
from microturn.model.interaction.presets import TINY_CODEC, preset
from microturn.model.mimi import load_mimi, save_mimi
from microturn.runtime.cli.errors import OneLineErrors

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make the weights of interaction-tiny.",
)

Folder = Annotated[Path, typer.Argument(help="Holds state.pt, to go on from, and log.jsonl.")]
Threads = Annotated[int, typer.Option(min=1, help="torch threads.")]


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


@app.command()
def codec(
    folder: Folder,
    steps: Annotated[int, typer.Option(min=1, help="Train up to this step.")] = Recipe.steps,
    joint_from: Annotated[
        int, typer.Option(min=1, help="The encoder learns again from here on.")
    ] = Recipe.joint_from,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and recordings.")] = Recipe.seed,
    begin: Annotated[
        Path | None, typer.Option(help="Codec weights to begin with where there is no state.pt.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Write the codec here, as fp16.")] = None,
    threads: Threads = 1,
) -> None:
    """Train the codec, or go on with it."""
    torch.set_num_threads(threads)
    recipe = Recipe(steps=steps, joint_from=joint_from, seed=seed)
    with _progress() as bar:
        task = bar.add_task("codec", total=steps)

        def show(step: int, line: dict[str, Any]) -> None:
            bar.update(task, completed=step)
            if line:
                bar.console.print(f"step {step}  mel {line['mel']:.3f}  phase {line['phase']:.3f}")

        config = preset("interaction-tiny").codec
        training = train(folder, recipe, config, begin=begin, progress=show)
    if weights is not None:
        save_mimi(training.averaged(), weights, dtype=torch.float16)


@app.command("codec-eval")
def codec_eval(
    path: Annotated[
        Path, typer.Argument(help="A training folder, or a file of weights; else those shipped.")
    ] = TINY_CODEC,
    utterances: Annotated[int, typer.Option(min=1, help="Of five words, in each set.")] = 200,
    threads: Threads = 1,
) -> None:
    """What a recogniser makes of decoded speech, as one JSON document."""
    torch.set_num_threads(threads)
    if path.is_dir():
        mimi = Training.load(path / "state.pt", Recipe()).averaged()
    else:
        mimi = load_mimi(path, config=preset("interaction-tiny").codec)
    print(json.dumps(evaluate(mimi, utterances), indent=2))


@app.command()
def model(
    folder: Folder,
    until: Annotated[int | None, typer.Option(min=1, help="Stop there, to go on later.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and scenes.")] = ModelRecipe.seed,
    batch: Annotated[int, typer.Option(min=1, help="Scenes a step.")] = ModelRecipe.batch,
    begin: Annotated[
        Path | None, typer.Option(help="Weights to begin with where there is no state.pt.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Write what was learnt here, as fp16, when it stops.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Train the model on scenes, or go on with it. The codec stays as it is."""
    torch.set_num_threads(threads)
    recipe = ModelRecipe(seed=seed, batch=batch)
    mimi = load_mimi(TINY_CODEC, config=preset("interaction-tiny").codec)
    family = load_family("interaction-tiny", seed=seed, trained=False)
    assert family.tokenizer is not None
    if begin is not None:
        read_learnt(family.model, begin)
    training = joint.Training(family.model, recipe, Lexicon(family.tokenizer, family.listen_id))
    with _progress() as bar:
        task = bar.add_task("model", total=recipe.steps)

        def show(step: int, line: dict[str, float]) -> None:
            stage = recipe.at(step - 1)[0].name
            right = f"{line['heard_right']:.2f} {line['said_right']:.2f}"
            bar.update(task, completed=step, description=f"{stage} {right}")

        joint.train(training, folder, voicing(mimi), until=until, progress=show)
    if weights is not None:
        write_learnt(family.model, weights)


if __name__ == "__main__":
    app()
