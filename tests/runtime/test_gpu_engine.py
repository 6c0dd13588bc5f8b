"""The engine made for a GPU, on machines that are none: the same bits as the CPU's."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from microturn.model.family import Sampling
from microturn.model.interaction import InteractionFamily, InteractionModel
from microturn.model.interaction import preset as preset_config
from microturn.model.tick import PATCH, TickSize
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.engine import RowInput, TickOutputs
from microturn.runtime.gpu_engine import GpuEngine, tick_sizes
from microturn.runtime.graphs import InlineMachine, Machine, Work
from microturn.runtime.plan import RowPlan, TickPlan

SLOTS, ROOM = 5, 12
Step = tuple[TickPlan, dict[str, RowInput]]


class LateQueue:
    """Does nothing before somebody waits for it: whoever writes a buffer too early is seen."""

    def __init__(self) -> None:
        self._todo: deque[Work] = deque()
        self._done = self._asked = 0

    def copy(self, to: Tensor, source: Tensor) -> None:
        self._put(lambda: to.copy_(source))

    def run(self, work: Work) -> None:
        self._put(work)

    def mark(self) -> LateMark:
        return LateMark(self, self._asked)

    def after(self, mark: LateMark) -> None:
        self._put(mark.wait)

    def _put(self, work: Callable[[], object]) -> None:
        self._todo.append(work)  # type: ignore[arg-type]
        self._asked += 1

    def work_until(self, place: int) -> None:
        while self._done < place:
            self._done += 1
            self._todo.popleft()()


@dataclasses.dataclass
class LateMark:
    queue: LateQueue
    place: int

    def wait(self) -> None:
        self.queue.work_until(self.place)

    def ms_since(self, earlier: Any) -> float:
        return 0.0


class LateMachine(InlineMachine):
    def queue(self) -> Any:
        return LateQueue()


def small_family() -> InteractionFamily:
    tiny = preset_config("interaction-tiny")
    trunk = dataclasses.replace(
        tiny.trunk,
        num_layers=3,
        global_layers=(1,),
        sliding_window=10,
        global_window=24,
        rel_extent=12,
        log_floor=8,
        num_experts=4,
    )
    model = InteractionModel(dataclasses.replace(tiny, trunk=trunk))
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.audio.table[0] = torch.nan  # bin 0 of mel 0, where only samples that are NaN fall
    return InteractionFamily(model)


def plans(
    family: Any, count: int, seed: int, poison: float, room: int | None = None
) -> Iterator[Step]:
    """Sessions that join, leave, pause, warm up, read, see and break."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    shape, room = family.shape, room or family.shape.max_rows
    live: dict[str, dict[str, Any]] = {}
    free, named = list(range(SLOTS)), 0
    for tick in range(count):
        for key in [k for k in live if draw.random() < 0.08]:
            free.append(live.pop(key)["slot"])
        while free and draw.random() < 0.5:
            slot = free.pop(draw.randrange(len(free)))
            live[f"s{named}"] = {"slot": slot, "fresh": True, "warm": draw.randrange(3), "said": 0}
            named += 1
        rows, inputs = [], {}
        for key, held in sorted(live.items(), key=lambda item: item[1]["slot"]):
            if draw.random() < 0.15:
                continue
            speaks = held["warm"] == 0
            held["warm"] -= not speaks
            feedback = int(held["fresh"] or held["said"] > 0)
            left = room - feedback - shape.frames * speaks
            context = draw.choice([0, 0, 0, 1, 5, left // 2]) if speaks else left
            patches = draw.choice([0, 0, 0, 3, left - context]) if speaks and family.sees else 0
            rows.append(
                RowPlan(
                    key,
                    held["slot"],
                    speaks,
                    held["fresh"],
                    context,
                    min(patches, left - context),
                    shape.frames * speaks,
                    feedback,
                )
            )
            audio = 0.1 * noise.standard_normal(shape.input_samples * speaks).astype(np.float32)
            if held["said"] and draw.random() < 0.1:
                audio[7] = poison
            inputs[key] = RowInput(
                audio,
                [draw.randrange(30) for _ in range(context)],
                seed=100 + int(key[1:]),
                sampling=Sampling(text_temperature=0.5 * (held["slot"] % 2), audio_top_k=40),
                patches=noise.integers(-1, 256, (rows[-1].n_patches, *PATCH), dtype=np.int16),
            )
            held["fresh"], held["said"] = False, held["said"] + speaks
        yield TickPlan(tick, 0, 0, 0, tuple(rows)), inputs


def same(a: TickOutputs, b: TickOutputs, tick: int) -> None:
    assert list(a.rows) == list(b.rows) or set(a.rows) == set(b.rows)
    for key, row in a.rows.items():
        other = b.rows[key]
        assert row.ok == other.ok, (tick, key)
        for name in ("text_ids", "codes", "audio"):
            one, two = getattr(row, name), getattr(other, name)
            assert one.shape[0] == two.shape[0] and one.dtype == two.dtype, (tick, key, name)
            if row.ok:
                assert one.tobytes() == two.tobytes(), (tick, key, name)


def state(engine: Any) -> list[Tensor]:
    arenas = engine.arenas
    return [arenas.cursor("rows").clone(), arenas.cursor("frames").clone(), arenas.parity.clone()]


def warm(family: Any, machine: Machine, **more: Any) -> GpuEngine:
    engine = GpuEngine(family, SLOTS, machine, **more)
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def family() -> InteractionFamily:
    return small_family()


@pytest.fixture(scope="module")
def stepped(family: InteractionFamily) -> tuple[list[Step], list[TickOutputs], list[Tensor]]:
    """Plans, and what the CPU's engine makes of them."""
    steps = [step for step in plans(family, 14, 3, float("nan"), ROOM) if step[0].rows]
    cpu = CpuEngine(family, SLOTS)
    made = [cpu.step(*step) for step in steps]
    said = [row for outputs in made for row in outputs.rows.values()]
    assert sum(not row.ok for row in said) > 1 and sum(row.ok for row in said) > 15
    assert len({len(plan.rows) for plan, _ in steps}) > 3
    return steps, made, state(cpu)


SOME = (
    TickSize(SLOTS, ROOM * SLOTS, ROOM, 0, SLOTS),
    TickSize(SLOTS, ROOM * SLOTS, ROOM, ROOM * SLOTS, SLOTS),
    TickSize(2, 8, 4, 0, 2),
    TickSize(SLOTS, 4 * SLOTS, 4, 0, SLOTS),
)


def test_graphs_of_padded_ticks_give_the_bits_of_the_cpu_engine(
    family: InteractionFamily, stepped: Any
) -> None:
    steps, want, cursors = stepped
    engine = warm(family, LateMachine(), sizes=SOME)
    for k, (step, expected) in enumerate(zip(steps, want, strict=True)):
        same(expected, engine.step(*step), k)
    assert all(torch.equal(a, b) for a, b in zip(state(engine), cursors, strict=True))
    assert engine.graph_misses == 0


def test_the_next_tick_is_asked_for_before_the_last_is_read(
    family: InteractionFamily, stepped: Any
) -> None:
    steps, want, cursors = stepped
    engine = warm(family, LateMachine(), sizes=SOME)
    tickets = deque([engine.launch(*steps[0])])
    for k in range(1, len(steps)):
        tickets.append(engine.launch(*steps[k]))
        same(want[k - 1], engine.collect(tickets.popleft()), k - 1)
    same(want[-1], engine.collect(tickets.popleft()), len(steps) - 1)
    assert all(torch.equal(a, b) for a, b in zip(state(engine), cursors, strict=True))


def test_a_host_that_writes_too_early_is_found(
    family: InteractionFamily, stepped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: one set of buffers for two ticks, and nobody waits for the first."""
    steps, want, _ = stepped
    engine = warm(family, LateMachine(), sizes=SOME)
    for k, (step, expected) in enumerate(zip(steps, want, strict=True)):
        if any(row.ok and len(row.audio) for row in expected.rows.values()):
            break
        same(expected, engine.step(*step), k)
    monkeypatch.setattr(engine, "_take", lambda: 0)
    first = engine.launch(*steps[k])
    engine._sets[0].taken = None
    engine.launch(*steps[k + 1])
    with pytest.raises((AssertionError, IndexError)):
        same(want[k], engine.collect(first), k)


def test_a_third_tick_has_to_wait(make_family: Any) -> None:
    family = make_family()
    engine = warm(family, LateMachine())
    steps = [step for step in plans(family, 8, 1, 0.5) if step[0].rows][:3]
    first, second = engine.launch(*steps[0]), engine.launch(*steps[1])
    with pytest.raises(RuntimeError, match="2 ticks are under way"):
        engine.launch(*steps[2])
    engine.collect(first)
    engine.collect(second)
    engine.step(*steps[2])


@pytest.mark.parametrize("seed", range(4))
def test_random_plans_with_steps_that_raise(seed: int, make_family: Any, tools: Any) -> None:
    """A family that sees and one that does not, steps that raise after everything was written."""
    families = [make_family(sees=bool(seed % 2)) for _ in range(2)]
    cpu, gpu = CpuEngine(families[0], SLOTS), warm(families[1], InlineMachine())
    draw = random.Random(seed)
    for k, step in enumerate(plans(families[0], 50, seed, float(tools.POISON))):
        if not step[0].rows:
            continue
        if draw.random() < 0.15:
            before = state(gpu)
            for family, engine in zip(families, (cpu, gpu), strict=True):
                family.raise_in = [True]
                with pytest.raises(RuntimeError, match="planted"):
                    engine.step(*step)
            fresh = [row.slot for row in step[0].rows if row.reset]
            for now, then in zip(state(gpu), before, strict=True):
                then[fresh] = 0
                assert torch.equal(now, then), "nothing moved"
        same(cpu.step(*step), gpu.step(*step), k)
    assert all(torch.equal(a, b) for a, b in zip(state(gpu), state(cpu), strict=True))
    assert gpu.graph_misses == 0


def test_a_tick_that_no_graph_holds_is_counted_logged_and_right(
    make_family: Any, caplog: pytest.LogCaptureFixture
) -> None:
    families = [make_family() for _ in range(2)]
    cpu = CpuEngine(families[0], SLOTS)
    gpu = warm(families[1], InlineMachine(), sizes=[TickSize(1, 4, 4, 0, 1)])
    misses = 0
    for k, step in enumerate(plans(families[0], 30, 5, 0.5)):
        if not step[0].rows:
            continue
        misses += len(step[0].rows) > 1 or step[0].rows[0].num_rows > 4
        same(cpu.step(*step), gpu.step(*step), k)
    assert gpu.graph_misses == misses > 3
    assert sum("no graph holds" in r.message and r.levelname == "ERROR" for r in caplog.records)


def test_every_tick_a_scheduler_may_plan_has_a_graph(make_family: Any) -> None:
    for sees in (False, True):
        family = make_family(sees=sees, max_rows=64)
        sizes = tick_sizes(64, family.shape, sees)
        assert len(sizes) <= 90
        for lines in (1, 2, 3, 33, 64):
            for each in (1, 3, 4, 5, 63, 64):
                patches = (each - 3) * lines if sees and each > 3 else 0
                wanted = TickSize(lines, lines * each, each, patches, lines)
                held = next(size for size in sizes if size.holds(wanted))
                assert held.rows <= max(8 * lines, 2 * 2 * wanted.rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_draws_as_the_cpu_does_and_alone_as_among_others() -> None:
    from microturn.bench.gpu_tick import check
    from microturn.runtime.graphs import CudaMachine

    assert "to the bit" in check(CudaMachine())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_graphs_of_a_gpu_over_random_plans(weights: str) -> None:
    """Two engines of other sizes of graph, one a tick ahead; nothing else moves the clock there."""
    from microturn.runtime.graphs import CudaMachine

    steps = [step for step in plans(small_family(), 14, 3, float("nan"), ROOM) if step[0].rows]
    machine = CudaMachine()
    family = small_family().to(machine.device, weights)
    plain, ahead = warm(family, machine, sizes=SOME[:2]), warm(family, machine, sizes=SOME)
    tickets = deque([ahead.launch(*steps[0])])
    for k in range(1, len(steps)):
        tickets.append(ahead.launch(*steps[k]))
        same(plain.step(*steps[k - 1]), ahead.collect(tickets.popleft()), k - 1)
    same(plain.step(*steps[-1]), ahead.collect(tickets.popleft()), len(steps))
    assert all(torch.equal(a, b) for a, b in zip(state(plain), state(ahead), strict=True))
    assert plain.graph_misses == ahead.graph_misses == 0
    assert len(plain.places[SOME[0]]) > 50
