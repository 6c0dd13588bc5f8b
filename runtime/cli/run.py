"""`microturn run`: a recording or a video in, a reply, its numbers and its picture out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from microturn.runtime import machine
from microturn.runtime.cli.audio import Recording, level, read_recording, write_wav
from microturn.runtime.cli.background import load_background
from microturn.runtime.cli.converse import Player, Script, play_fast, play_real, script
from microturn.runtime.cli.errors import UsageError, usage_errors
from microturn.runtime.cli.events import load_events
from microturn.runtime.cli.live import Status, view
from microturn.runtime.cli.loading import loading
from microturn.runtime.cli.picture import Picture, draw
from microturn.runtime.cli.report import UNTRAINED, TickRecord, record, summarise, write_json
from microturn.runtime.cli.video import DEFAULT_FPS, TimedFrame, Video, read_video
from microturn.runtime.versions import versions

if TYPE_CHECKING:
    from microturn.model.family import ModelFamily
    from microturn.runtime import Output, Runtime
    from microturn.runtime.clock import Clock

DEFAULT_PRESET = "interaction-tiny"
SILENCE = Recording(np.zeros(0, np.float32), 16_000)


@dataclass(frozen=True)
class ModelOptions:
    """Which model, at which tick, and whom it asks; a preset unless a checkpoint is given."""

    preset: str | None
    checkpoint: Path | None
    tick_ms: int
    seed: int
    threads: int = 1
    background: str | None = None

    def runtime(self, clock: Clock, *, dump: Path | None = None) -> Runtime:
        """A warm runtime for one session; its clock thread does not run yet.

        Raises UsageError, ConfigError.
        """
        from microturn.runtime import LatenessPolicy, Runtime
        from microturn.runtime.lateness import COUNT_ONLY

        if self.preset is not None and self.checkpoint is not None:
            raise UsageError("give --preset or --checkpoint, not both")
        asked = None if self.background is None else load_background(self.background)
        with usage_errors(OSError, MemoryError):
            return Runtime(
                model=self._checkpoint(),
                preset=self.preset or DEFAULT_PRESET,
                checkpoint=None if self.checkpoint is None else str(self.checkpoint),
                tick_ms=self.tick_ms,
                input_queue_ms=max(500, 4 * self.tick_ms),
                seed=self.seed,
                threads=self.threads,
                max_sessions=1,
                admission="slots",
                lateness=COUNT_ONLY if clock.by_hand else LatenessPolicy(),
                dump=None if dump is None else str(dump),
                clock=clock,
                start=False,
                background=asked,
            )

    def _checkpoint(self) -> ModelFamily | None:
        """The checkpoint, loaded before one's eyes; None where there is none."""
        if self.checkpoint is None:
            return None
        from microturn.model.interaction import load_family

        with (
            usage_errors(ValueError, KeyError, OSError, MemoryError),
            loading(Console(stderr=True), self.checkpoint.name) as progress,
        ):
            return load_family(
                checkpoint=self.checkpoint,
                tick_ms=self.tick_ms,
                seed=self.seed,
                progress=progress,
            )

    @property
    def name(self) -> str:
        """Of the model, for people."""
        return str(self.checkpoint or self.preset or DEFAULT_PRESET)


@dataclass(frozen=True)
class RunOptions:
    """The command line of `microturn run`; speech, video or both."""

    model: ModelOptions
    speech: Path | None
    out: Path
    text: Path | None
    realtime: bool
    tail_ms: int
    dump: Path | None
    instructions: str | None
    video: Path | None = None
    fps: float = DEFAULT_FPS

    @property
    def input_name(self) -> str:
        """Of what is heard and seen, for people."""
        return " and ".join(p.name for p in (self.speech, self.video) if p is not None)


def run_recording(options: RunOptions, console: Console) -> None:
    """Plays recording and video to one session and writes the three files. Raises UsageError."""
    from microturn.runtime import FastClock, RealClock

    files = _files(options.out)
    if options.speech is None and options.video is None:
        raise UsageError("give a recording to hear, --video to see, or both")
    recording = read_recording(options.speech) if options.speech else SILENCE
    video = read_video(options.video, options.fps) if options.video else Video()
    told = load_events(options.text) if options.text else ()
    clock = RealClock() if options.realtime else FastClock()
    with options.model.runtime(clock, dump=options.dump) as runtime:
        shape = runtime.family.shape
        if video.frames and not runtime.family.sees:
            raise UsageError(f"{options.model.name} has no vision tower, it cannot see --video")
        play = script(
            recording,
            told,
            rate=shape.input_rate,
            tick_ms=shape.tick_ms,
            tail_ms=options.tail_ms,
            video=video,
        )
        _introduce(console, options, runtime, play)
        outputs, replaced = _play(options, runtime, play, console)
        summary = runtime.summary()
    records = [record(output) for output in outputs]
    said = np.concatenate([output.audio for output in outputs])
    trained = runtime.family.trained
    title = f"{options.input_name} through {options.model.name}"
    write_wav(
        files["wav"],
        said,
        shape.output_rate,
        f"microturn: {title}" + ("" if trained else f" ({UNTRAINED})"),
    )
    facts = {**summarise(records), **_facts(options, runtime, len(said) / shape.output_rate)}
    if options.video:
        facts |= {"video": options.video.name, "fps": options.fps, **_seen(video, replaced)}
    write_json(
        files["json"],
        {
            "untrained": not trained,
            "summary": facts,
            "runtime": summary,
            "told": [asdict(event) for event in told],
            "seen": [_frame(frame) for frame in video.frames],
        },
        records,
    )
    picture = Picture(
        heard=recording.samples,
        heard_rate=recording.rate,
        said=said,
        said_rate=shape.output_rate,
        records=records,
        told=told,
        seen=video.frames,
        title=title,
        subtitle=_subtitle(options, len(records), shape.tick_ms),
        warning="" if trained else "untrained: random weights",
    )
    draw(picture, files["png"])
    _conclude(console, facts, records, files.values(), trained)


def _files(out: Path) -> dict[str, Path]:
    """Where the three files go. Raises UsageError."""
    if out.suffix.lower() != ".wav":
        raise UsageError(f"--out must name a .wav file, got {out}")
    if not out.parent.is_dir():
        raise UsageError(f"--out: there is no folder {out.parent}; make it first")
    return {"wav": out, "json": out.with_suffix(".json"), "png": out.with_suffix(".png")}


def _play(
    options: RunOptions, runtime: Runtime, play: Script, console: Console
) -> tuple[Sequence[Output], int]:
    """The outputs, and how many frames gave way to the next before the model began to see them."""
    session = runtime.open(instructions=options.instructions, seed=options.model.seed)
    status = Status(
        title=f"{options.input_name} → {options.model.name}",
        tick_ms=play.tick_ms,
        untrained=not runtime.family.trained,
        total_ms=play.num_ticks * play.tick_ms,
    )
    outputs: list[Output] = []
    with view(console) as shown:

        def watch(output: Output) -> None:
            outputs.append(output)
            status.heard = level(play.piece(status.ticks))
            status.follow(output)
            shown.show(status)

        player = Player(session, play, watch)
        if options.realtime:
            play_real(runtime, [player])
        else:
            play_fast(runtime, [player])
    replaced = session.stats.replaced_images
    session.close()
    return outputs, replaced


def _seen(video: Video, replaced: int) -> dict[str, Any]:
    return {
        "frames": len(video.frames),
        "frames_replaced": replaced,
        "frame_rows_max": max(frame.num_patches for frame in video.frames),
    }


def _frame(frame: TimedFrame) -> dict[str, Any]:
    height, width = frame.pixels.shape[:2]
    return {
        "at_ms": round(frame.at_ms, 3),
        "width": width,
        "height": height,
        "rows": frame.num_patches,
    }


def _facts(options: RunOptions, runtime: Runtime, reply_seconds: float) -> dict[str, Any]:
    return {
        "model": runtime.family.name,
        "checkpoint": None if options.model.checkpoint is None else str(options.model.checkpoint),
        "untrained": not runtime.family.trained,
        "seed": options.model.seed,
        "tick_ms": runtime.family.shape.tick_ms,
        "realtime": options.realtime,
        "input": options.input_name,
        "reply_seconds": round(reply_seconds, 6),
        "reply_rate": runtime.family.shape.output_rate,
        "device": machine.device_name(),
        "versions": versions(),
    }


def _introduce(console: Console, options: RunOptions, runtime: Runtime, play: Script) -> None:
    seconds = play.num_ticks * play.tick_ms / 1000
    pace = "in real time" if options.realtime else "as fast as it goes"
    frames = f", {len(play.seen)} frames" if play.seen else ""
    console.print(
        f"{options.model.name}: {play.num_ticks} ticks of {play.tick_ms} ms ({seconds:.1f} s) "
        f"{pace}{frames}; warm-up {runtime.warm_up_ms:.0f} ms, "
        f"{runtime.state_bytes / 1e6:.1f} MB of state",
        highlight=False,
        soft_wrap=True,
    )
    if not runtime.family.trained:
        console.print(f"[bold red]{UNTRAINED}[/]", highlight=False, soft_wrap=True)


def _subtitle(options: RunOptions, ticks: int, tick_ms: int) -> str:
    pace = "real time" if options.realtime else "as fast as it goes"
    return f"{ticks} ticks of {tick_ms} ms  ·  {pace}  ·  seed {options.model.seed}  ·  " + (
        machine.device_name()
    )


def _conclude(
    console: Console,
    facts: dict[str, Any],
    records: Sequence[TickRecord],
    files: Any,
    trained: bool,
) -> None:
    marked = [r for r in records if r.marks]
    console.print(
        f"step p50 {facts['step_ms_p50']:.1f} ms, p99 {facts['step_ms_p99']:.1f}, "
        f"max {facts['step_ms_max']:.1f}; least slack {facts['slack_ms_min']:.1f} ms; "
        f"{facts['misses']} misses in {facts['ticks']} ticks",
        highlight=False,
        soft_wrap=True,
    )
    if marked:
        first = marked[0]
        console.print(
            f"{len(marked)} of {len(records)} ticks are marked, the first at "
            f"{first.start_ms / 1000:.1f} s: {', '.join(first.marks)}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        "wrote " + ", ".join(str(path) for path in files) + ("" if trained else "  (untrained)"),
        highlight=False,
        soft_wrap=True,
    )
