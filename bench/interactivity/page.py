"""A page to listen to: clips with their timelines. One folder, no network."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from microturn.bench.interactivity.players import Job
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import SAMPLE_RATE, Word
from microturn.bench.interactivity.suite import WORDS

PIXELS = 110
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


class Played(NamedTuple):
    """One scene, its reply, and the words a recogniser heard of it (None: nobody listened)."""

    scene: Scene
    reply: Reply
    heard: Sequence[Word] | None


class Page:
    """A folder of clips, each with a fragment of the page beside it: several processes, and runs
    that go on with earlier ones, fill it together. `write` makes index.html of the fragments.
    """

    def __init__(self, folder: Path, per_task: int = 4) -> None:
        self._folder, self._per_task = folder, per_task

    def add(self, provider: str, job: Job, played: Played) -> None:
        """Keeps the first few scenes of each task and condition: a clip with the user on the left,
        the reply on the right.
        """
        if job.number >= self._per_task:
            return
        scene = played.scene
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{job.task}-{job.condition}-{provider}-{job.number}"
        said = played.reply.audio
        right = np.zeros_like(scene.audio) if said is None else said[: len(scene.audio)]
        right = np.pad(right, (0, len(scene.audio) - len(right)))
        both = np.stack([scene.audio, np.clip(right, -1, 1)], 1)
        soundfile.write(self._folder / f"{name}.flac", both, SAMPLE_RATE)
        body = (
            f"<h3>{escape(scene.name)}</h3>"
            f'<audio controls preload="none" src="{escape(name)}.flac"></audio>'
            f'<div class="scroll">{_timeline(played)}</div>'
        )
        fragment = {"title": f"{job.task}, {job.condition}: {provider}", "body": body}
        (self._folder / f"{name}.json").write_text(json.dumps(fragment), encoding="utf-8")

    def write(self) -> Path:
        """Gives the page's path."""
        sections: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self._folder.glob("*.json")):
            fragment = json.loads(path.read_text(encoding="utf-8"))
            sections[fragment["title"]].append(fragment["body"])
        contents = "".join(
            f'<li><a href="#{_anchor(title)}">{escape(title)}</a></li>' for title in sections
        )
        body = "".join(
            f'<h2 id="{_anchor(title)}">{escape(title)}</h2>{"".join(parts)}'
            for title, parts in sections.items()
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "index.html"
        path.write_text(
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>microturn: what it heard and said</title><style>{STYLE}</style>"
            "<h1>What it heard and said</h1><p>Left: the user. Right: the reply. "
            f"<small>{WORDS}</small></p><ul>{contents}</ul>{body}",
            encoding="utf-8",
        )
        return path


def _anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title)


def _timeline(played: Played) -> str:
    scene = played.scene
    width = round(scene.seconds * PIXELS) + 90
    height = LANE * len(LANES) + 24
    lanes = (scene.heard, _windows(scene), played.reply.words, played.heard or ())
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
