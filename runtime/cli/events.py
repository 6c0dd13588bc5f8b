"""Timed text: what a run is told, and when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from microturn.runtime.cli.errors import UsageError

FORMAT = '[{"at_ms": 1500, "text": "...", "speak": false}, ...]'


@dataclass(frozen=True)
class TimedText:
    """Text that enters as context at at_ms of the input; speak asks the model to voice it."""

    at_ms: float
    text: str
    speak: bool = False


def load_events(path: Path) -> tuple[TimedText, ...]:
    """The events of a file in FORMAT, by time. Raises UsageError naming the entry and the field."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; --text wants a JSON file, {FORMAT}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is not JSON ({error}); --text wants {FORMAT}") from None
    if not isinstance(entries, list):
        raise UsageError(f"{path} must hold a list, {FORMAT}, got {type(entries).__name__}")
    events = [_event(f"{path}, entry {i}", entry) for i, entry in enumerate(entries)]
    return tuple(sorted(events, key=lambda event: event.at_ms))


def _event(where: str, entry: object) -> TimedText:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: must be an object like those of {FORMAT}, got {entry!r}")
    if unknown := sorted(set(entry) - {"at_ms", "text", "speak"}):
        raise UsageError(f"{where}: unknown field {unknown[0]!r}; known: at_ms, text, speak")
    at_ms, text, speak = entry.get("at_ms"), entry.get("text"), entry.get("speak", False)
    if isinstance(at_ms, bool) or not isinstance(at_ms, int | float) or not 0 <= at_ms < 1e12:
        raise UsageError(f"{where}: at_ms must be milliseconds from the start, got {at_ms!r}")
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{where}: text must be a non-empty string, got {text!r}")
    if not isinstance(speak, bool):
        raise UsageError(f"{where}: speak must be true or false, got {speak!r}")
    return TimedText(float(at_ms), text, speak)
