"""A small family with real state: what it says depends on all it was ever fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from microturn.kernels.arena import ArenaSpec, Pages, Ring, Twice, ring_capacity
from microturn.model.family import TickShape
from microturn.model.tick import TickInputs, TickOutputs
from microturn.runtime.arenas import Arenas
from microturn.runtime.clock import VirtualClock
from microturn.runtime.runtime import Runtime
from microturn.runtime.session import Session

WINDOW = 8
POISON = np.float32(0.987654)
"""A sample that makes the fake model's numbers go bad."""


class FakeTokenizer:
    """A word is one id of 1..37."""

    def encode(self, text: str) -> list[int]:
        return [1 + sum(map(ord, word)) % 37 for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(self.piece, ids)).strip()

    def piece(self, token_id: int) -> str:
        return f" w{token_id}" if 1 <= token_id <= 37 else ""


class FakeFamily:
    """Rows of four numbers in a ring and in pages; the last `WINDOW` of them, masked before
    position 0, and a twice-kept running sum decide what is said.
    """

    name = "fake"
    trained = False
    listen_id = 0
    delegate_id = 39
    speak_ids = (38,)

    def __init__(self, *, sees: bool = False, max_rows: int = 16) -> None:
        self.sees = sees
        self.tokenizer: FakeTokenizer | None = FakeTokenizer()
        self.shape = TickShape(100, 2, 16_000, 1_600, 24_000, 2_400, 2, 32, max_rows)
        self.raise_in: list[bool] = []
        """Whether the next steps raise, after everything was written."""
        self.fed: list[list[SimpleNamespace]] = []

    def digest(self) -> str:
        return "f" * 64

    def to(self, device: torch.device) -> FakeFamily:
        return self

    def arena_specs(self) -> Sequence[ArenaSpec]:
        capacity = ring_capacity(WINDOW, 2 * self.shape.max_rows, 8)
        return (
            ArenaSpec("ring", "ring", (4,), capacity, "rows"),
            ArenaSpec("pages", "pages", (4,), capacity, "rows", page_size=8),
            ArenaSpec("sum", "twice", (4,), 1, "frames"),
        )

    def tick(self, inputs: TickInputs, outputs: TickOutputs, arenas: Arenas) -> None:
        lines = list(self._lines(inputs))
        self.fed.append(lines)
        for value in (outputs.ok, outputs.text_ids, outputs.codes, outputs.audio):
            value.zero_()
        outputs.experts[:] = torch.tensor([len(lines), sum(line.emits for line in lines)])
        for line in lines:
            if line.reset:
                arenas.reset(line.slot)
        counts = [self._line(b, line, arenas, outputs) for b, line in enumerate(lines)]
        if self.raise_in and self.raise_in.pop(0):
            raise RuntimeError("planted")
        good = [b for b in range(len(lines)) if outputs.ok[b]]
        arenas.commit(
            [lines[b].slot for b in good],
            {
                "rows": [counts[b] for b in good],
                "frames": [self.shape.frames * lines[b].emits for b in good],
            },
            [lines[b].emits for b in good],
        )

    def _lines(self, inputs: TickInputs) -> Iterator[SimpleNamespace]:
        """What `fill` was given, read back from the buffers."""
        size, offsets = inputs.size, inputs.row_offsets.tolist()
        patches = size.lines + size.rows
        for b, slot in enumerate(inputs.slot_ids.tolist()):
            if slot < 0:
                continue
            sources = inputs.sources[offsets[b] : offsets[b + 1]]
            context = sources[(sources >= size.lines) & (sources < patches)] - size.lines
            seen = sources[(sources >= patches) & (sources < patches + size.patches)] - patches
            emits = bool(inputs.emits[b])
            yield SimpleNamespace(
                slot=slot,
                emits=emits,
                reset=bool(inputs.reset[b]),
                n_feedback=int((sources < size.lines).sum()),
                context_ids=inputs.context_ids[context],
                audio=inputs.audio[b].clone() if emits else torch.empty(0),
                seed=int(inputs.seed[b]) if emits else 0,
                heat=float(inputs.text_temperature[b]) if emits else 0.0,
                patches=inputs.patches[seen] if len(seen) else None,
            )

    def _line(self, b: int, line: SimpleNamespace, arenas: Arenas, made: TickOutputs) -> int:
        ring, pages, total = (arenas.view(name) for name in ("ring", "pages", "sum"))
        assert isinstance(ring, Ring) and isinstance(pages, Pages) and isinstance(total, Twice)
        at, frame = arenas.committed("rows", line.slot), arenas.committed("frames", line.slot)
        assert line.n_feedback == int(at == 0 or frame > 0)
        before = total.read(torch.tensor([line.slot]))
        before = torch.where(torch.tensor(frame > 0), before, torch.zeros_like(before))[0]
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
        rows = [before + 1.0] * line.n_feedback
        rows += [torch.sin(scale * float(i)) for i in line.context_ids]
        if line.patches is not None:
            rows += [scale * p.float().mean() / 255 for p in line.patches]
        for hop in line.audio.view(self.shape.frames, -1) if line.emits else ():
            rows.append(torch.stack([hop.mean(), hop.abs().max(), hop[0], hop[-1]]))
        count = len(rows) + (self.shape.frames - 1 if line.emits else 0)
        assert len(rows) <= self.shape.max_rows
        rows += [rows[-1] * 0.5] * (count - len(rows))
        slots, positions = torch.full((count,), line.slot), torch.arange(at, at + count)
        ring.write(slots, positions, torch.stack(rows))
        pages.write(slots, positions, torch.stack(rows) * 0.5)
        made.ok[b] = True
        if not line.emits:
            return count
        seen = torch.arange(at + count - WINDOW, at + count)
        slot = torch.full((WINDOW,), line.slot)
        keys = ring.read(slot, seen) + pages.read(slot, seen)
        keys = torch.where((seen >= 0)[:, None], keys, torch.zeros(()))
        decay = torch.linspace(0.1, 1.0, WINDOW)[:, None]
        now = before * 0.9 + (keys * decay).sum(0) * 0.2
        total.write(torch.tensor([line.slot]), now[None])
        draw = float(now.sum()) * 1e4 + line.seed % 97 + line.heat * 31
        for j in range(self.shape.frames):
            made.text_ids[j, b] = int(abs(draw) * (j + 1)) % 40
            made.codes[j, b] = torch.tensor([int(abs(draw)) % 32, j])
        phase = torch.arange(self.shape.output_samples) * 0.01
        made.audio[b] = torch.sin(phase * (1 + now[0]) + now[1]) * 0.5
        made.ok[b] = not bool((line.audio == float(POISON)).any())
        return count


def noise(samples: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def drain(session: Session) -> list[Any]:
    """Every output that waits."""
    return list(iter(session.poll, None))


def bits(outputs: Sequence[Any]) -> list[tuple[bytes, bytes, str]]:
    """What must be equal when two runs are."""
    return [(o.audio.tobytes(), o.codes.tobytes(), repr(o.events)) for o in outputs]


@pytest.fixture
def make_family() -> type[FakeFamily]:
    return FakeFamily


@pytest.fixture
def make_runtime() -> Iterator[Callable[..., Runtime]]:
    """Runtimes on a virtual clock around the fake family, closed at the end."""
    made: list[Runtime] = []

    def make(model: Any = None, clock: Any = None, **config: Any) -> Runtime:
        config = {"input_queue_ms": 2_000, **config}
        made.append(Runtime(model=model or FakeFamily(), clock=clock or VirtualClock(), **config))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


@pytest.fixture
def tools() -> SimpleNamespace:
    return SimpleNamespace(noise=noise, drain=drain, bits=bits, POISON=POISON)


@pytest.fixture(scope="module")
def untrained() -> Iterator[None]:
    """Presets load with random weights, which speak at every tick."""
    from microturn.model.interaction.presets import TRAINED

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(TRAINED, "interaction-tiny")
        yield
