"""ProactiveVideoQA-style: a question that the picture answers later; until then, silence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from microturn.bench.interactivity.figures import MOTIONS, Colour, Performance, random_figure
from microturn.bench.interactivity.scene import Expected, Film, Scene, Shot, Take, room_of
from microturn.bench.interactivity.splits import Split, pick, spoken
from microturn.bench.interactivity.vocabulary import COLOURS, MOTION_WORDS

COLOUR_QUESTIONS = (
    "what colour is the figure",
    "tell me the colour of the figure",
    "what colour is it",
    "which colour do you see",
    "tell me what colour it is",
    "please tell me which colour you see",
)
MOTION_QUESTIONS = (
    "what is the figure doing",
    "tell me what the figure does",
    "what does it do",
    "which exercise is this",
    "tell me what it is doing",
    "please tell me which exercise you see",
)
ANSWER_SECONDS = 4.0
"""An answer counts from the moment the picture shows it until this much later."""
REACTION = {"colour": 0.4, "motion": 0.9}
"""Seconds a watcher needs."""


def proactive(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """Half ask for the colour of somebody who is not there yet, half for what somebody who stands
    still will do.
    """
    voice, take = split.voice(rng), Take()
    figure = random_figure(rng)
    about = "colour" if rng.random() < 0.5 else "motion"
    question = split.wording(rng, COLOUR_QUESTIONS if about == "colour" else MOTION_QUESTIONS)
    asked = take.say(spoken(question, voice), float(rng.uniform(0.2, 0.6)))
    shown = asked + float(rng.uniform(1.0, 7.0))
    if about == "colour":
        answer = pick(rng, tuple(COLOURS))
        figure = replace(figure, colour=_near(rng, COLOURS[answer]), background=(35, 35, 40))
        shots = (Shot(0.0, figure, present=False), Shot(shown, figure))
    else:
        called = pick(rng, tuple(MOTION_WORDS))
        answer = MOTION_WORDS[called]
        period = float(rng.uniform(0.8, 1.6))
        scale = float(rng.uniform(0.8, 1.15))
        motion = {joint: scale * by for joint, by in MOTIONS[called].items()}
        ends = tuple(shown + period * (k + 1) for k in range(int(6 / period)))
        shots = (Shot(0.0, figure), Shot(shown, figure, Performance(motion, shown, ends)))
    room = room_of(condition, rng)
    return Scene(
        name=name,
        task="proactive",
        split=split.name,
        audio=take.record(shown + ANSWER_SECONDS + 1.0, room, rng),
        film=Film(shots),
        expected=(Expected(answer, shown + REACTION[about]),),
        heard=take.heard,
        facts={"asked": asked, "shown": shown, "until": shown + ANSWER_SECONDS, "about": about},
    )


def _near(rng: Generator, colour: Colour) -> Colour:
    r, g, b = (int(v) for v in np.clip(np.add(colour, rng.integers(-20, 21, 3)), 0, 255))
    return r, g, b
