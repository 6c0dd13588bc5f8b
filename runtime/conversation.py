"""What a session was told and what its model said, as text with times. No torch.

What the user says is sound: no transcript of it exists here. It is what a background model is given
(spec/interaction.md section 2).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

MAX_CHARS = 100_000
"""Of a conversation: sessions have no maximum age. The oldest lines go, instructions stay."""

MAX_LINE = 500
PAUSE_MS = 1_000.0
"""A pause that ends a line of the model's speech."""


class Source(StrEnum):
    """Where a line comes from."""

    INSTRUCTIONS = "instructions"
    CONTEXT = "context"
    MODEL = "model"
    BACKGROUND = "background"


class Line(NamedTuple):
    """A text and the media time at which it was told or its first word said."""

    ms: float
    source: Source
    text: str


def lines_from_json(values: Iterable[Mapping[str, Any]]) -> tuple[Line, ...]:
    """Of `Line._asdict()`. Raises KeyError, ValueError."""
    return tuple(Line(v["ms"], Source(v["source"]), v["text"]) for v in values)


class Conversation:
    """The newest lines of a session, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instructions: list[Line] = []
        self._lines: deque[Line] = deque()
        self._chars = 0
        self._now = 0.0
        self._spoke = 0.0
        self.truncated = False

    def told(self, source: Source, text: str) -> None:
        """Text that entered, at the present media time."""
        with self._lock:
            line = Line(self._now, source, text)
            if source is Source.INSTRUCTIONS:
                self._instructions.append(line)
            else:
                self._add(line)

    def said(self, ms: float, piece: str) -> None:
        """A piece of text that the model said; pieces join to a line until it pauses."""
        with self._lock:
            last = self._lines[-1] if self._lines else None
            joins = (
                last is not None
                and last.source is Source.MODEL
                and ms - self._spoke <= PAUSE_MS
                and len(last.text) < MAX_LINE
            )
            self._spoke = ms
            if last is not None and joins:
                self._lines[-1] = last._replace(text=last.text + piece)
                self._chars += len(piece)
            else:
                self._add(Line(ms, Source.MODEL, piece.lstrip()))

    def passed(self, ms: float) -> None:
        """The media time now."""
        self._now = ms

    def lines(self) -> tuple[Line, ...]:
        """Instructions, then the others by time."""
        with self._lock:
            return (*self._instructions, *self._lines)

    def refill(self, lines: Sequence[Line], now_ms: float) -> None:
        """Goes on with what `lines` gave elsewhere."""
        with self._lock:
            self._now = self._spoke = now_ms
            for line in lines:
                if line.source is Source.INSTRUCTIONS:
                    self._instructions.append(line)
                else:
                    self._add(line)

    def _add(self, line: Line) -> None:
        self._lines.append(line)
        self._chars += len(line.text)
        while self._chars > MAX_CHARS and len(self._lines) > 1:
            self._chars -= len(self._lines.popleft().text)
            self.truncated = True
