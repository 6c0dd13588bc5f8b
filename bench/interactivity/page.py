"""A page to listen to: clips with their timelines. One folder, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import soundfile

from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import SAMPLE_RATE, Word
from microturn.bench.interactivity.suite import WORDS, Played

PIXELS = 60
"""Of a second."""
LANE = 26
LANES = ("heard", "expected", "said", "recognised")
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #c8ced6;
  --heard: #4a6fa5; --expected: #2e8b57; --said: #b5541c; --recognised: #7a4fa3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #14171b; --line: #3a424c;
  --heard: #86aee6; --expected: #6fcf97; --said: #f0945a; --recognised: #bb93e0; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
.scroll { overflow-x: auto; } audio { width: 100%; } svg text { font-size: 12px; fill: var(--ink); }
h2 { margin-top: 2.5rem; } small { opacity: .75; }
"""


class Page:
    """Collects scenes; `write` makes index.html beside the clips."""

    def __init__(self, folder: Path, per_task: int = 4) -> None:
        self._folder, self._per_task = folder, per_task
        self._sections: dict[str, list[str]] = {}

    def add(self, provider: str, played: Played) -> None:
        """Keeps the first few scenes of each task: a clip with the user on the left, the reply on
        the right.
        """
        scene = played.scene
        kept = self._sections.setdefault(f"{scene.task}: {provider}", [])
        if len(kept) >= self._per_task:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        clip = f"{provider}-{scene.name}.flac"
        said = played.reply.audio
        right = np.zeros_like(scene.audio) if said is None else said[: len(scene.audio)]
        right = np.pad(right, (0, len(scene.audio) - len(right)))
        both = np.stack([scene.audio, np.clip(right, -1, 1)], 1)
        soundfile.write(self._folder / clip, both, SAMPLE_RATE)
        kept.append(
            f"<h3>{escape(scene.name)}</h3>"
            f'<audio controls preload="none" src="{escape(clip)}"></audio>'
            f'<div class="scroll">{_timeline(played)}</div>'
        )

    def write(self) -> Path:
        """Gives the page's path."""
        body = "".join(
            f"<h2>{escape(title)}</h2>{''.join(parts)}" for title, parts in self._sections.items()
        )
        path = self._folder / "index.html"
        path.write_text(
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>microturn: what it heard and said</title><style>{STYLE}</style>"
            "<h1>What it heard and said</h1><p>Left: the user. Right: the reply. "
            f"<small>{WORDS}</small></p>{body}",
            encoding="utf-8",
        )
        return path


def _timeline(played: Played) -> str:
    scene = played.scene
    width = round(scene.seconds * PIXELS) + 90
    height = LANE * len(LANES) + 24
    heard = played.heard.words if played.heard is not None else ()
    lanes = (scene.heard, _windows(scene), played.reply.words, heard)
    parts = [f'<text x="0" y="{LANE * i + 17}">{name}</text>' for i, name in enumerate(LANES)]
    for index, (name, words) in enumerate(zip(LANES, lanes, strict=True)):
        parts += [_box(word, index, name) for word in words]
    for second in range(int(scene.seconds) + 1):
        x = 90 + second * PIXELS
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="0" y2="{height - 20}" stroke="var(--line)"/>'
            f'<text x="{x + 2}" y="{height - 4}">{second} s</text>'
        )
    return (
        f'<svg width="{width}" height="{height}" role="img" '
        f'aria-label="timeline of {escape(scene.name)}">{"".join(parts)}</svg>'
    )


def _windows(scene: Scene) -> Sequence[Word]:
    return [
        Word(want.word, want.at - want.tolerance, want.at + want.tolerance)
        for want in scene.expected
    ]


def _box(word: Word, lane: int, colour: str) -> str:
    x, y = 90 + word.start * PIXELS, LANE * lane + 3
    width = max(3.0, (word.end - word.start) * PIXELS)
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{LANE - 6}" rx="3" '
        f'fill="var(--{colour})" fill-opacity=".3" stroke="var(--{colour})"/>'
        f'<text x="{x + 3:.1f}" y="{y + 14}">{escape(word.text)}</text>'
    )
