"""Drawn figures that move: repeated motions with exact ends, idle before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Pose:
    """Angles in radians from hanging straight down, positive to the figure's front (right in the
    picture for the right side, left for the left); lean of the trunk from upright; sink and rise of
    the whole body in trunk lengths.
    """

    left_arm: float = 0.15
    right_arm: float = 0.15
    left_forearm: float = 0.0
    right_forearm: float = 0.0
    left_thigh: float = 0.08
    right_thigh: float = 0.08
    left_shin: float = 0.0
    right_shin: float = 0.0
    lean: float = 0.0
    rise: float = 0.0
    shift: float = 0.0

    def moved(self, by: Mapping[str, float], amount: float) -> Pose:
        """Each named value changed by amount times its entry."""
        return replace(self, **{name: getattr(self, name) + amount * d for name, d in by.items()})


_PI = math.pi
MOTIONS: dict[str, dict[str, float]] = {
    "squats": {"left_thigh": 1.2, "right_thigh": 1.2, "left_shin": -1.2, "right_shin": -1.2},
    "jumps": {"rise": 0.7, "left_arm": 2.4, "right_arm": 2.4},
    "waves": {"right_arm": 2.6, "right_forearm": 0.6},
    "raises": {"left_arm": 1.5, "right_arm": 1.5},
    "kicks": {"right_thigh": 1.4},
    "bends": {"lean": 1.1, "left_arm": 0.6, "right_arm": 0.6},
    "claps": {"left_arm": -0.55, "right_arm": -0.55, "left_forearm": -1.3, "right_forearm": -1.3},
    "steps": {"left_thigh": 1.1, "left_shin": -0.9},
    "reaches": {"left_arm": 2.9, "right_arm": 2.9, "rise": 0.12},
    "swings": {"left_arm": 1.2, "right_arm": -0.9, "shift": 0.3},
}
"""What changes between rest and the far point of a repetition, by the motion's name."""

GROUND = 0.93
"""Where the floor begins, in picture heights from the top."""

JOINTS = tuple(f.name for f in fields(Pose))


def made_up_motion(rng: Generator) -> dict[str, float]:
    """A motion nobody has a name for: two to five joints, each moved enough to be seen."""
    names = rng.choice(JOINTS[:9], size=int(rng.integers(2, 6)), replace=False)
    motion = {str(n): float(rng.uniform(0.7, 1.8) * rng.choice((-1, 1))) for n in names}
    if rng.random() < 0.3:
        motion["rise"] = float(rng.uniform(0.2, 0.6))
    return motion


@dataclass(frozen=True)
class Performance:
    """A motion repeated. ends: when each repetition is back at rest, in seconds, rising; the first
    begins at `start`. sharpness: 1 moves like a pendulum, above it lingers at rest.
    """

    motion: Mapping[str, float]
    start: float
    ends: tuple[float, ...]
    sharpness: float = 1.0

    def amount(self, time: float) -> float:
        """0 at rest to 1 at the far point of a repetition."""
        begin = self.start
        for end in self.ends:
            if begin <= time < end:
                phase = (time - begin) / (end - begin)
                return float(((1 - math.cos(2 * _PI * phase)) / 2) ** self.sharpness)
            begin = end
        return 0.0

    @property
    def end(self) -> float:
        return self.ends[-1] if self.ends else self.start


@dataclass(frozen=True)
class Figure:
    """Who moves and where: sizes in picture heights, colours, the sway that nobody can stand
    without.
    """

    colour: Colour = (230, 230, 230)
    background: Colour = (40, 40, 60)
    floor: Colour = (70, 60, 50)
    trunk: float = 0.26
    limb: float = 0.17
    head: float = 0.06
    width: float = 0.03
    centre: float = 0.5
    mirrored: bool = False
    sway: float = 0.02
    sway_period: float = 3.1
    rest: Pose = field(default_factory=Pose)


def random_figure(rng: Generator) -> Figure:
    """A figure that stands out from its background."""
    light = rng.integers(150, 256, 3)
    dark = rng.integers(0, 90, 3)
    fore, back = (light, dark) if rng.random() < 0.5 else (dark, light)
    scale = rng.uniform(0.8, 1.1)
    return Figure(
        colour=_colour(fore),
        background=_colour(back),
        floor=_colour(np.clip(back.astype(int) + rng.integers(-25, 26, 3), 0, 255)),
        trunk=0.26 * scale,
        limb=float(rng.uniform(0.15, 0.19)) * scale,
        head=float(rng.uniform(0.05, 0.07)) * scale,
        width=float(rng.uniform(0.022, 0.04)),
        centre=float(rng.uniform(0.4, 0.6)),
        mirrored=bool(rng.random() < 0.5),
        sway=float(rng.uniform(0.0, 0.05)),
        sway_period=float(rng.uniform(2.0, 5.0)),
    )


def draw(
    figure: Figure,
    performance: Performance | None,
    time: float,
    size: tuple[int, int] = (160, 120),
    *,
    present: bool = True,
) -> NDArray[np.uint8]:
    """[height, width, 3]: the figure at `time` seconds; without a performance it only stands, and
    where it is not present the room is empty.
    """
    pose = figure.rest
    sway = figure.sway * math.sin(2 * _PI * time / figure.sway_period)
    pose = replace(pose, lean=pose.lean + sway, left_arm=pose.left_arm + sway)
    if performance is not None:
        pose = pose.moved(performance.motion, performance.amount(time))
    width, height = size
    oversampled = 2
    picture = Image.new("RGB", (oversampled * width, oversampled * height), figure.background)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, GROUND * picture.height, *picture.size), fill=figure.floor)
    if present:
        _draw_body(pen, figure, pose, *picture.size)
    picture = picture.resize(size, Image.Resampling.BOX)
    return np.asarray(picture)


def _draw_body(
    pen: ImageDraw.ImageDraw, figure: Figure, pose: Pose, width: int, height: int
) -> None:
    ground = GROUND * height
    trunk, limb = figure.trunk * height, figure.limb * height
    stroke = max(1, round(figure.width * height))
    side = -1 if figure.mirrored else 1

    def joint(at: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
        return at[0] + side * length * math.sin(angle), at[1] + length * math.cos(angle)

    # Feet stay on the floor: the hip stands as high as the straighter leg reaches.
    reach = max(
        math.cos(thigh) + math.cos(thigh + shin)
        for thigh, shin in (
            (pose.left_thigh, pose.left_shin),
            (pose.right_thigh, pose.right_shin),
        )
    )
    hip = (
        (figure.centre * width) + side * pose.shift * trunk,
        ground - limb * max(0.3, reach) - pose.rise * trunk,
    )
    neck = joint(hip, _PI - pose.lean, trunk)
    lines = [(hip, neck)]
    for sign, thigh, shin in (
        (-1, pose.left_thigh, pose.left_shin),
        (1, pose.right_thigh, pose.right_shin),
    ):
        knee = joint(hip, sign * thigh, limb)
        lines += [(hip, knee), (knee, joint(knee, sign * (thigh + shin), limb))]
    for sign, arm, forearm in (
        (-1, pose.left_arm, pose.left_forearm),
        (1, pose.right_arm, pose.right_forearm),
    ):
        elbow = joint(neck, sign * arm - pose.lean, 0.85 * limb)
        hand = joint(elbow, sign * (arm + forearm) - pose.lean, 0.85 * limb)
        lines += [(neck, elbow), (elbow, hand)]
    for start, end in lines:
        pen.line((*start, *end), fill=figure.colour, width=stroke)
        pen.ellipse(_around(end, stroke / 2), fill=figure.colour)
    head = joint(neck, _PI - pose.lean, figure.head * height)
    pen.ellipse(_around(head, figure.head * height), fill=figure.colour)


def _around(centre: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    x, y = centre
    return x - radius, y - radius, x + radius, y + radius


def _colour(values: NDArray[np.integer]) -> Colour:
    r, g, b = (int(v) for v in values)
    return r, g, b
