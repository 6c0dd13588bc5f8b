"""`microturn run --mode turn`: one message to released weights, their reply as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from microturn.runtime import machine
from microturn.runtime.cli.audio import read_recording
from microturn.runtime.cli.errors import UsageError, usage_errors
from microturn.runtime.cli.loading import loading
from microturn.runtime.versions import versions

if TYPE_CHECKING:
    from microturn.model.inkling.chat import Message
    from microturn.runtime.turn import Reply

MAX_PATCHES = 100_000


@dataclass(frozen=True)
class TurnOptions:
    """The command line of `microturn run --mode turn`."""

    checkpoint: Path | None
    speech: Path | None
    images: tuple[Path, ...]
    prompt: str | None
    instructions: str | None
    out: Path
    max_tokens: int
    temperature: float
    seed: int
    threads: int


def run_turn(options: TurnOptions, console: Console) -> None:
    """Shows the reply as it comes and writes REPLY.json. Raises UsageError."""
    folder = _check(options)
    with usage_errors(ValueError, FloatingPointError, OSError, MemoryError):
        _run(options, folder, console)


def _run(options: TurnOptions, folder: Path, console: Console) -> None:
    import torch

    from microturn.model.family import Sampling
    from microturn.model.inkling.chat import AUDIO, IMAGE, read_chat_format
    from microturn.model.inkling.turn import Prompt, audio_bins
    from microturn.runtime.turn import load_for_turn, read_turn_config, write

    torch.set_num_threads(options.threads)
    how = Sampling(text_temperature=options.temperature)
    config = read_turn_config(folder)
    chat = read_chat_format(folder)
    if options.speech and not config.audio_mels:
        raise UsageError(f"{folder} has no audio tower, it cannot hear {options.speech.name}")
    if options.images and config.vision is None:
        raise UsageError(
            f"{folder} has no vision tower that this version computes, it cannot see "
            f"{options.images[0].name}"
        )
    images = [_patches(path, folder) for path in options.images]
    bins = audio_bins(torch.from_numpy(_samples(options.speech)))
    rows = {IMAGE: [len(p) for p in images], AUDIO: [len(bins)] if options.speech else []}
    ids = chat.encode(_messages(options), rows)
    prompt = Prompt(
        torch.tensor(ids),
        bins,
        torch.from_numpy(np.concatenate(images) if images else np.zeros((0, 2, 40, 40, 3), "i2")),
        chat.placeholders[AUDIO],
        chat.placeholders[IMAGE],
    )
    with loading(Console(stderr=True), folder.name) as progress:
        model = load_for_turn(folder, len(ids) + options.max_tokens, progress)
    reader = chat.reader(ids)

    def show(token: int) -> None:
        # What a model writes must not steer the terminal.
        piece = "".join(c for c in reader.push(token) if c.isprintable() or c in "\n\t")
        style = "dim" if reader.thinking else None
        console.print(
            piece, end="", style=style, markup=False, highlight=False, emoji=False, soft_wrap=True
        )

    reply = write(
        model,
        prompt,
        how=how,
        seed=options.seed,
        eos_ids=chat.eos_ids,
        max_tokens=options.max_tokens,
        on_token=show,
    )
    console.print()
    facts = {
        "mode": "turn",
        "checkpoint": str(folder),
        "text": reader.text,
        "thoughts": reader.thoughts,
        "ids": reply.ids,
        "ended": reply.ended,
        **_times(reply),
        "rows": {"all": len(ids), **{kind: sum(counts) for kind, counts in rows.items()}},
        "prompt_ids": ids,
        "max_tokens": options.max_tokens,
        "temperature": how.text_temperature,
        "top_k": how.text_top_k,
        "seed": options.seed,
        "device": machine.device_name(),
        "versions": versions(),
    }
    options.out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    _conclude(console, options, reply, len(ids))


def _check(options: TurnOptions) -> Path:
    """What can be said before anything is read. Raises UsageError."""
    if options.checkpoint is None:
        raise UsageError("--mode turn wants --checkpoint, a folder of released weights")
    if options.out.suffix.lower() != ".json":
        raise UsageError(
            f"--out must name a .json file in --mode turn, got {options.out}: these weights write "
            f"text and cannot speak"
        )
    if not options.out.parent.is_dir():
        raise UsageError(f"--out: there is no folder {options.out.parent}; make it first")
    if not (options.speech or options.images or options.prompt):
        raise UsageError("give a recording to hear, --image to see or --prompt to read")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed must be in [0, 2**63), got {options.seed}")
    return options.checkpoint


def _messages(options: TurnOptions) -> list[Message]:
    """Instructions, then one message of the user: images, recording, text. Text alone is a string,
    which templates of text models want.
    """
    parts: list[dict[str, Any]] = [{"type": "image", "image": p.name} for p in options.images]
    if options.speech:
        parts.append({"type": "audio", "audio": options.speech.name})
    content: Any = parts
    if options.prompt and parts:
        parts.append({"type": "text", "text": options.prompt})
    elif options.prompt:
        content = options.prompt
    told = [{"role": "system", "content": options.instructions}] if options.instructions else []
    return [*told, {"role": "user", "content": content}]


def _samples(path: Path | None) -> NDArray[np.float32]:
    """[N] at 16 kHz."""
    from microturn.kernels.dmel.weights import SAMPLE_RATE
    from microturn.runtime.audio_input import Resampler

    if path is None:
        return np.zeros(0, np.float32)
    recording = read_recording(path)
    resampler = Resampler(SAMPLE_RATE)
    samples = np.clip(recording.samples, -1.0, 1.0)
    return np.concatenate((resampler.push(samples, recording.rate), resampler.flush()))


def _patches(path: Path, folder: Path) -> NDArray[np.int16]:
    """[N, 2, 40, 40, 3], at the size the release's processor gives a picture."""
    from PIL import Image

    from microturn.model.inkling.chat import read_image_scale, scaled_size
    from microturn.runtime.image_input import to_patches

    if not path.is_file():
        raise UsageError(f"{path}: no such file; --image wants a picture")
    scale = read_image_scale(folder)
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be decoded: {error}") from error
    if scale is not None:
        height, width = scaled_size(image.height, image.width, *scale)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.LANCZOS)
    return to_patches(image, MAX_PATCHES)


def _times(reply: Reply) -> dict[str, Any]:
    return {
        "prefill_ms": round(reply.prefill_ms, 3),
        "ms_per_token": round(float(np.mean(reply.token_ms)), 3) if reply.token_ms else None,
        "token_ms": [round(ms, 3) for ms in reply.token_ms],
    }


def _conclude(console: Console, options: TurnOptions, reply: Reply, rows: int) -> None:
    pace = f", then {np.mean(reply.token_ms):.1f} ms a token" if reply.token_ms else ""
    end = "" if reply.ended else "; --max-tokens cut it off"
    console.print(
        f"{rows} rows read in {reply.prefill_ms:.0f} ms{pace}: {len(reply.ids)} tokens{end}; "
        f"wrote {options.out}",
        style="dim",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
