"""The two ways to use a model from the command line, and which options belong to which."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from microturn.runtime.cli.errors import UsageError


class Mode(StrEnum):
    """How a model is used."""

    INTERACTION = "interaction"
    TURN = "turn"


ONLY_IN_TURN = {
    "prompt": "give --instructions, or timed text with --text",
    "image": "give --video, a file or a folder of pictures",
    "max_tokens": "a session ends with its input, see --tail-ms",
    "temperature": "sessions have their own",
}
NOT_IN_TURN = {
    "preset": "presets have an audio head, give --checkpoint with released weights",
    "video": "give pictures with --image",
    "fps": "there is no video",
    "text": "a turn has no times, give --prompt",
    "tick_ms": "a turn has no ticks",
    "realtime": "a turn has no ticks",
    "tail_ms": "a turn has no ticks",
    "dump": "a turn has no plans to replay",
    "background": "a turn delegates nothing",
}


def check_options(mode: Mode, given: Collection[str]) -> None:
    """Refuses options that mean nothing in this mode. Raises UsageError naming the first."""
    meaningless = NOT_IN_TURN if mode is Mode.TURN else ONLY_IN_TURN
    where = "in" if mode is Mode.TURN else "without"
    for name, instead in meaningless.items():
        if name in given:
            option = "--realtime/--fast" if name == "realtime" else f"--{name}"
            raise UsageError(
                f"{option.replace('_', '-')} means nothing {where} --mode turn: {instead}"
            )
