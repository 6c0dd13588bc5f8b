"""What a session was given, and whether all it got back follows from that and nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from microturn.bench.chaos.echo import SHAPE, told
from microturn.runtime import Output

PERIOD = 2**20
RAMP: NDArray[np.float32] = (
    (np.arange(PERIOD + 100 * SHAPE.input_samples) % PERIOD + 1) * 2.0**-21
).astype(np.float32)
"""Sample k of a stream that begins at `base` is RAMP[(base + k) % PERIOD]: never 0, which is
silence, and no two near each other alike.
"""


class Broken(AssertionError):
    """A promise was not kept."""


def need(kept: bool, promise: str, *facts: object) -> None:
    """Raises Broken."""
    if not kept:
        raise Broken(f"{promise}: {', '.join(map(str, facts))}")


class Ledger:
    """Of one session.

    given, heard, dropped, silence  samples
    hashes    of the first k ids told, by k
    images    shown, in order: whether each is a still; replaced: frames that were never seen
    """

    def __init__(self, seed: int, base: int) -> None:
        self.seed = seed
        self.base = base
        self.given = self.heard = self.dropped = self.silence = 0
        self.hashes = [0]
        self.known = 0
        self.images: list[bool] = []
        self.begun = self.stills = self.replaced = 0
        self.last = -1
        self.outputs = self.lost = self.late = self.position = 0
        self.tick = -1

    def next_samples(self, count: int) -> NDArray[np.float32]:
        """The samples that come next in its stream; `accept` them once they were taken."""
        return self._stream(self.given, count)

    def accept(self, count: int) -> None:
        self.given += count

    def tell(self, ids: list[int]) -> None:
        for token_id in ids:
            self.hashes.append(told(self.hashes[-1], token_id))

    def show(self, still: bool) -> None:
        self.images.append(still)

    def _saw(self, images: int, stills: int, last: int, wrong: int) -> None:
        if wrong:
            raise Broken(f"images are seen whole and in order: {wrong}")
        if not self.last <= last < len(self.images):
            raise Broken(f"what is seen was shown: {last} of {len(self.images)}")
        self.stills += sum(self.images[self.last + 1 : last + 1])
        if stills != self.stills:
            raise Broken(f"every still image is seen: {stills} of {self.stills}")
        self.begun, self.last, self.replaced = images, last, last + 1 - images

    def check(self, output: Output) -> None:
        """Its next output. Raises Broken."""
        heard, known, digest, seed, *seen = output.codes[0].tolist()
        missing, dropped = round(output.inserted_silence_ms), round(output.dropped_ms)
        lost, count = output.dropped_outputs, SHAPE.input_samples - missing
        self.position += lost
        if output.start_ms != self.position * SHAPE.tick_ms:
            raise Broken(f"media time has no gaps: {output.start_ms} at {self.position}")
        if output.tick < self.tick:
            raise Broken(f"outputs are in order: {output.tick} after {self.tick}")
        if seed != self.seed:
            raise Broken(f"a slot's state is its tenant's: {seed}, {self.seed}")
        before = heard - count
        unseen = before - self.heard
        if not 0 <= unseen <= lost * SHAPE.input_samples:
            raise Broken(f"what was heard is what outputs say was heard: {unseen}, {lost}")
        first = before + self.dropped + dropped
        spoken = output.audio
        if missing:
            silent, spoken = spoken[count:], spoken[:count]
            if not output.audio[0]:
                silent, spoken = output.audio[:missing], output.audio[missing:]
            if silent.any():
                raise Broken(f"what is missing is silence: {missing}")
        if spoken.tobytes() != self._stream(first, count).tobytes():
            raise Broken(f"audio is heard in order, and a gap is marked: {first, count, dropped}")
        if not self.known <= known < len(self.hashes) or digest != self.hashes[known]:
            raise Broken(f"context is told in order: {known} of {len(self.hashes) - 1}")
        self._saw(*seen)
        self.heard, self.known, self.tick = heard, known, output.tick
        self.dropped += dropped
        self.silence += missing
        self.outputs += 1
        self.lost += lost
        self.late += output.late
        self.position += 1

    def _stream(self, first: int, count: int) -> NDArray[np.float32]:
        at = (self.base + first) % PERIOD
        return RAMP[at : at + count]
