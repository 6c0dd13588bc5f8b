"""Many scenes at once through one runtime: as one ends, the next takes its place.

A life is what a session meets, tick by tick: a generator that yields what the session hears and
sees next, is sent the tick's output, and returns the reply once it is over. The model as it is
meant to be used is one kind of life (duplex.py), the same network in a harness another
(harness.py). What a session says depends on its scene and its seed alone, not on the lanes beside
it.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio

if TYPE_CHECKING:
    from microturn.model.family import Sampling
    from microturn.runtime import Runtime, Session, TextEvent


class Moment(NamedTuple):
    """What one tick hears, [input_samples] fp32 at SAMPLE_RATE, and the picture it sees, if any.
    at: seconds into the scene that this is from; None: the scene stands still.
    """

    audio: Audio
    picture: NDArray[np.uint8] | None = None
    at: float | None = None


class Says(Protocol):
    """As much of a session's Output as a life looks at."""

    @property
    def start_ms(self) -> int: ...
    @property
    def audio(self) -> Audio: ...
    @property
    def words(self) -> tuple[TextEvent, ...]: ...


Life = Generator[Moment, Says, Reply]


K = TypeVar("K")


class Case(NamedTuple, Generic[K]):
    """A scene and how it is lived; `key` is the caller's own."""

    key: K
    scene: Scene
    life: Life


def play(
    runtime: Runtime, cases: Iterable[Case[K]], drawn: Sampling | None = None
) -> Iterator[tuple[Case[K], Reply]]:
    """Each case with its reply, as they end. The runtime's clock must be by hand; all its slots are
    used. `cases` are taken one by one, whenever there is room.

    drawn: None draws the likeliest tokens. Raises ValueError on a model that hears at another
    rate than SAMPLE_RATE.
    """
    rate = runtime.family.shape.input_rate
    if rate != SAMPLE_RATE:
        raise ValueError(f"scenes are heard at {SAMPLE_RATE} Hz, not at {rate} Hz")
    waiting = iter(cases)
    lanes: list[_Lane[K]] = []
    while True:
        while runtime.free_slots and (case := next(waiting, None)) is not None:
            seed = zlib.crc32(case.scene.name.encode())
            session = runtime.open(seed=seed, sampling=drawn or sampling())
            lanes.append(_Lane(case, session))
        over = [lane for lane in lanes if lane.reply is not None]
        lanes = [lane for lane in lanes if lane.reply is None]
        for lane in over:
            assert lane.reply is not None
            yield lane.case, lane.reply
        if over:
            continue  # others may begin before the next tick
        if not lanes:
            return
        runtime.tick()
        for lane in lanes:
            lane.collect()


def sampling(temperature: float = 0.0) -> Sampling:
    """Text drawn at a temperature, and the likeliest codes for it. At 0 the likeliest text too:
    what a model says then depends on nothing but what it met.
    """
    from microturn.model.family import Sampling

    return Sampling(text_temperature=temperature, audio_temperature=0.0)


class _Lane(Generic[K]):
    """A case in a session: what comes next was pushed. reply: once it is over."""

    def __init__(self, case: Case[K], session: Session) -> None:
        self.case = case
        self.reply: Reply | None = None
        self._session = session
        self._advance(None)

    def collect(self) -> None:
        """After a tick."""
        output = self._session.poll()
        if output is None:
            reason = self._session.closed_reason
            raise RuntimeError(f"{self.case.scene.name}: a tick gave no output ({reason})")
        self._advance(output)

    def _advance(self, output: Says | None) -> None:
        try:
            moment = next(self.case.life) if output is None else self.case.life.send(output)
        except StopIteration as over:
            self.reply = over.value
            self._session.close()
            return
        if moment.picture is not None:
            self._session.push_image(moment.picture)
        self._session.push_audio(moment.audio, SAMPLE_RATE)
