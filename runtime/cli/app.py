"""The `microturn` command: run, talk, replay, logits, codec, models, doctor."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from microturn.runtime.cli import background as asking
from microturn.runtime.cli import events
from microturn.runtime.cli.errors import OneLineErrors
from microturn.runtime.cli.mode import Mode, check_options

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Full-duplex interaction models in real time.",
)

codec = typer.Typer(
    cls=OneLineErrors, no_args_is_help=True, help="Audio to codes and back, with a released codec."
)
app.add_typer(codec, name="codec")


class Dtype(StrEnum):
    """How weights are stored."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp8 = "fp8"


Preset = Annotated[str | None, typer.Option(help="A named model; `microturn models` lists them.")]
Checkpoint = Annotated[Path | None, typer.Option(help="A checkpoint folder instead of a preset.")]
TickMs = Annotated[int, typer.Option(help="Length of a tick, a multiple of 50 ms.")]
Seed = Annotated[int, typer.Option(help="Of the session's sampling and of random weights.")]
Instructions = Annotated[str | None, typer.Option(help="Text the session starts with.")]
Threads = Annotated[int, typer.Option(help="torch threads; one is fastest for the tiny preset.")]
Background = Annotated[str | None, typer.Option(metavar="URL_OR_CALLABLE", help=asking.HELP)]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def run(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            help="REPLY.wav; REPLY.json and REPLY.png go beside it. With --mode turn REPLY.json."
        ),
    ],
    speech: Annotated[
        Path | None,
        typer.Argument(help="A recording of what the model hears; without it, silence."),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE_OR_FOLDER",
            help="What the model sees meanwhile: a video, or a folder of pictures taken by name.",
        ),
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames a second of --video, at most.")] = 2.0,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="EVENTS.json",
            help=f"A JSON file of timed text, {events.FORMAT}: each text enters the session as "
            "context at that time of the input; speak asks the model to say it.",
        ),
    ] = None,
    preset: Preset = None,
    checkpoint: Checkpoint = None,
    tick_ms: TickMs = 100,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime/--fast",
            help="Hear the recording at the pace of speech, or as fast as the machine can.",
        ),
    ] = True,
    seed: Seed = 0,
    tail_ms: Annotated[
        int, typer.Option(min=0, help="Silence after the recording, time to answer.")
    ] = 2000,
    dump: Annotated[
        Path | None, typer.Option(help="Record inputs and plans here for `microturn replay`.")
    ] = None,
    instructions: Instructions = None,
    threads: Threads = 1,
    background: Background = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="interaction: hear and speak all the time. turn: released weights without an "
            "audio head read one message and write a reply as text."
        ),
    ] = Mode.INTERACTION,
    prompt: Annotated[str | None, typer.Option(help="With --mode turn: what you write.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="With --mode turn: a picture it sees; repeatable.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="With --mode turn: the longest reply.")
    ] = 512,
    temperature: Annotated[
        float, typer.Option(min=0, help="With --mode turn: of sampling; 0 takes the likeliest.")
    ] = 0.7,
) -> None:
    """Stream a recording, a video or both through a model and write what it says."""
    check_options(mode, {name for name in context.params if _is_given(context, name)})
    if mode is Mode.TURN:
        from microturn.runtime.cli.turn import TurnOptions, run_turn

        turn = TurnOptions(
            checkpoint=checkpoint,
            speech=speech,
            images=tuple(image or ()),
            prompt=prompt,
            instructions=instructions,
            out=out,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            threads=threads,
        )
        run_turn(turn, Console())
        return
    from microturn.runtime.cli.run import ModelOptions, RunOptions, run_recording

    options = RunOptions(
        model=ModelOptions(preset, checkpoint, tick_ms, seed, threads, background),
        speech=speech,
        video=video,
        fps=fps,
        out=out,
        text=text,
        realtime=realtime,
        tail_ms=tail_ms,
        dump=dump,
        instructions=instructions,
    )
    run_recording(options, Console())


@app.command()
def talk(
    preset: Preset = None,
    checkpoint: Checkpoint = None,
    tick_ms: TickMs = 100,
    seed: Seed = 0,
    instructions: Instructions = None,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after this long; else Ctrl-C stops.")
    ] = None,
    threads: Threads = 1,
    background: Background = None,
    camera: Annotated[
        int | None, typer.Option(min=0, help="Show the model what /dev/video<N> sees.")
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames a second of --camera, at most.")] = 2.0,
) -> None:
    """Talk with a model: microphone in, loudspeaker out. Wear headphones: the model hears
    everything the microphone does, its own voice included.
    """
    from microturn.runtime.cli.camera import v4l2
    from microturn.runtime.cli.run import ModelOptions
    from microturn.runtime.cli.talk import SoundDevice, talk_to

    model = ModelOptions(preset, checkpoint, tick_ms, seed, threads, background)
    talk_to(
        model,
        SoundDevice(),
        Console(),
        instructions=instructions,
        seconds=seconds,
        camera=None if camera is None else v4l2(camera),
        fps=fps,
    )


@app.command()
def replay(
    dump: Annotated[
        Path, typer.Argument(help="A folder written by --dump, or one session's folder in it.")
    ],
    threads: Threads = 1,
) -> None:
    """Run dumped sessions again and compare every bit. Exit code 1 when one differs."""
    from microturn.runtime.cli.replay import replay_all

    if not replay_all(dump, Console(), threads=threads):
        raise typer.Exit(1)


@app.command()
def logits(
    checkpoint: Annotated[
        Path, typer.Option(help="A folder in the released Inkling layout (config.json beside).")
    ],
    ids: Annotated[Path, typer.Option(metavar="IDS.json", help="A JSON list of token ids.")],
    out: Annotated[Path, typer.Option(metavar="LOGITS.npy", help="[T, vocabulary] fp32.")],
    chunk: Annotated[
        int | None,
        typer.Option(min=1, help="Stream in pieces of so many rows; else one whole sequence."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="What weights are rounded to; the arithmetic is fp32.")
    ] = Dtype.fp32,
    threads: Threads = 1,
) -> None:
    """Write the logits of token ids, to compare with another framework."""
    import torch

    from microturn.runtime.cli.logits import write_logits

    torch.set_num_threads(threads)
    rows, vocabulary = write_logits(checkpoint, ids, out, chunk=chunk, dtype=dtype.value)
    typer.echo(f"{out}: logits [{rows}, {vocabulary}] fp32, weights as {dtype.value}")


CodecCheckpoint = Annotated[
    Path,
    typer.Option(
        "--checkpoint",
        metavar="FILE_OR_DIR",
        help="A Mimi codec, kyutai's file or Hugging Face's folder.",
    ),
]


@codec.command()
def encode(
    speech: Annotated[Path, typer.Argument(metavar="IN.wav", help="Any recording.")],
    checkpoint: CodecCheckpoint,
    out: Annotated[Path, typer.Option(metavar="CODES.npy", help="[Q, F] int64.")],
    codebooks: Annotated[
        int | None, typer.Option(help="Q; 8, or as many as there are, when not given.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Write the codes of a recording."""
    import torch

    from microturn.runtime.cli import codec as commands

    torch.set_num_threads(threads)
    books, frames = commands.encode(speech, checkpoint, out, books=codebooks)
    typer.echo(f"{out}: codes [{books}, {frames}] int64")


@codec.command()
def decode(
    codes: Annotated[Path, typer.Argument(metavar="CODES.npy", help="[Q, F] integers.")],
    checkpoint: CodecCheckpoint,
    out: Annotated[Path, typer.Option(metavar="OUT.wav", help="Mono, 32-bit float.")],
    threads: Threads = 1,
) -> None:
    """Write the audio of codes."""
    import torch

    from microturn.runtime.cli import codec as commands

    torch.set_num_threads(threads)
    seconds = commands.decode(codes, checkpoint, out)
    typer.echo(f"{out}: {seconds:.2f} s")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the presets: sizes, memory, whether they are trained, what they need."""
    from microturn.runtime.cli.models import bytes_text, count_text, preset_table

    rows = preset_table()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("preset", "layers", "hidden", "experts", "parameters", "fp32", "a session"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    for column in ("weights", "real time on", "fits here"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.name,
            str(row.layers),
            str(row.hidden),
            row.experts,
            count_text(row.parameters),
            bytes_text(row.weight_bytes),
            bytes_text(row.session_bytes),
            "trained" if row.trained else "untrained",
            row.real_time,
            "yes" if row.fits else "no: memory",
        )
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(table)
    console.print(
        "\nexperts: routed (top-k + shared); untrained: seeded random weights, which say nothing; "
        "a checkpoint brings its own",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can and cannot do, and why. Exit code 1 only if nothing can run."""
    from microturn.runtime.cli.doctor import examine, verdict

    checks = examine()
    if as_json:
        checked = [asdict(check) for check in checks]
        typer.echo(json.dumps({"checks": checked, "verdict": verdict(checks)}))
    else:
        console = Console()
        colors = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        for check in checks:
            console.print(
                f"[{colors[check.state]}]{check.state:<5}[/]{check.name:<8}{escape(check.says)}",
                highlight=False,
                soft_wrap=True,
            )
        console.print(f"\n{verdict(checks)}", highlight=False)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def main() -> None:
    """The console script."""
    app()
