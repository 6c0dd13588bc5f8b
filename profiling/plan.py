"""What a machine that is not at hand would hold, from sizes, datasheets and one assumption.

The formulas are those of admission and bench: the cases of a tick's ops, the arenas of a session,
the weights as `place` stores them. A tick's step is

    sum over ops of  max(bytes / memory rate, flops / product rate) / attained
        + launches + exchanges between ranks

with one launch an op at least. Of a machine that was profiled the rates are what it measured, each
op attains what it did there, and what else the tick took stands for launches (`rates_of`). An
exchange is an all-reduce of a pass's rows in 16 bits: the time of a small one, and
2 (count - 1) / count of its bytes over the link. Every number carries a mark: "formula" (counted
from sizes), "datasheet", "published" (measured by others), "assumed"; "measured" and "fitted" where
a profile was given.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from microturn.model import cost
from microturn.model.cost import EXCHANGE_US, EXCHANGES, OpCall, even
from microturn.profiling.document import Profile
from microturn.profiling.findings import losses, waterfall
from microturn.profiling.gpus import Gpu
from microturn.profiling.tables import Table
from microturn.runtime.config import RuntimeConfig
from microturn.runtime.engines import RESERVE
from microturn.runtime.foresight import doubling

if TYPE_CHECKING:
    from microturn.model.interaction import InteractionFamily

SCHEMA = 1
LAUNCH_US = 1.3
"""From the end of a kernel of a graph to the start of the next: measured by others on an H200."""
ATTAINED = 0.75
"""Of the datasheet's rates, in a tick: assumed. The kernels' bars ask for 0.78 to 0.93 of what a
GPU measures, which is about 0.9 of its datasheet.
"""
WIDTH = 2
"""Bytes of all other values on a GPU, keys and values included."""


@dataclass(frozen=True)
class Rates:
    """What a machine makes of its rates.

    attained     of both, in any op that by_op does not name
    launch_us    between kernels
    fixed_ms     of a tick, whatever is in it
    measured     what was measured, None where the rates are a datasheet's
    """

    attained: float = ATTAINED
    by_op: Mapping[str, float] = field(default_factory=dict)
    launch_us: float = LAUNCH_US
    fixed_ms: float = 0.0
    measured: str | None = None

    def of(self, op: str) -> float:
        return self.by_op.get(op, self.attained)


IDEAL = Rates(1.0)


@dataclass(frozen=True)
class Number:
    """mark: see above; note: where it comes from."""

    name: str
    value: float
    unit: str
    mark: str
    note: str = ""


@dataclass(frozen=True)
class Level:
    """A tick of so many sessions, windows full, on each of the GPUs, in ms.

    parts        the floor of each part of the tick program: bytes or flops at the datasheet's rates
    floor_ms     their sum
    exchange_ms, launch_ms  beside it; launch_ms: with what a tick takes whatever is in it
    step_ms      what is expected: the floor over what is attained, and the two
    memory_gb    weights and state
    binds        "bytes", "flops", "exchanges" or "launches": what takes most of the step
    """

    sessions: int
    gigabytes: float
    parts: dict[str, float]
    floor_ms: float
    exchange_ms: float
    launch_ms: float
    step_ms: float
    memory_gb: float
    binds: str


@dataclass(frozen=True)
class Plan:
    """sessions: the answer, the least of what memory and time allow; limit says which."""

    preset: str
    gpu: str
    count: int
    tick_ms: int
    context: int
    dtype: str
    sessions: int
    limit: str
    numbers: tuple[Number, ...]
    levels: tuple[Level, ...]


@cache
def family_of(preset_name: str, count: int, tick_ms: int, context: int, dtype: str) -> Any:
    """One rank's sizes without memory. Raises ValueError."""
    from microturn.model.interaction import preset
    from microturn.model.interaction.shard import shard
    from microturn.runtime.dry_run import dry_family

    config = shard(preset(preset_name), count).with_window(context, None)
    return dry_family(config, dtype, tick_ms)


def plan(
    preset: str,
    gpu: Gpu,
    *,
    count: int = 1,
    tick_ms: int = 100,
    context: int = 8192,
    dtype: str = "fp8",
    attained: float = ATTAINED,
    rates: Rates | None = None,
    at: Iterable[int] = (),
) -> Plan:
    """count: GPUs that share the model; context: keys that global layers see; dtype: of the
    weights, "bf16" or "fp8", on a CPU "fp32"; rates: of a machine that was profiled, in place of
    attained; at: more numbers of sessions to show. Raises ValueError, also where the model cannot
    be cut so.
    """
    known = ("bf16", "fp8") if rates is None else ("bf16", "fp8", "fp32")
    if dtype not in known:
        raise ValueError(f"dtype is of the weights, {' or '.join(known)}, got {dtype!r}")
    if not 0 < attained <= 1:
        raise ValueError(f"attained is a fraction of a rate, above 0 and at most 1, got {attained}")
    rates = Rates(attained) if rates is None else rates
    family = family_of(preset, count, tick_ms, context, dtype)
    weights = weight_bytes(family.model) / 1e9
    each = sum(spec.bytes_per_slot for spec in family.arena_specs()) / 1e9
    room = gpu.memory_gb - RESERVE / 1e9 - weights
    margin = RuntimeConfig().admission_margin_ms

    def level(sessions: int, of: Rates = rates) -> Level:
        return _level(family, gpu, count, sessions, dtype, of, weights + sessions * each)

    held = max(0, int(room / each))
    in_time = _most(lambda n: level(n).step_ms + margin <= tick_ms, held)
    at_floor = _most(lambda n: level(n, IDEAL).step_ms + margin <= tick_ms, held)
    limit = "memory" if held <= in_time else "time"
    shown = sorted({*(doubling(in_time) if in_time else ()), *at})
    mark = "datasheet" if rates.measured is None else "measured"
    fitted = rates.measured is not None
    numbers = (
        Number("memory of a GPU", gpu.memory_gb, "GB", mark, gpu.source),
        Number("memory rate", gpu.read_gbps, "GB/s", mark, gpu.source),
        Number("products", gpu.tflops, "TFLOP/s", mark, gpu.source),
        Number("link, one way", gpu.link_gbps, "GB/s", "datasheet", gpu.source),
        *_attained(rates),
        Number("weights a GPU", weights, "GB", "formula", f"{dtype}, cut {count} ways"),
        Number("state of a session a GPU", 1000 * each, "MB", "formula", f"{context} keys"),
        Number("left for graphs", RESERVE / 1e9, "GB", "formula", "RESERVE of the engine"),
        Number("margin of a tick", margin, "ms", "formula", "admission's"),
        Number("exchanges a tick", _exchanges(family, count), "", "formula", "2 a layer and pass"),
        Number(
            "time of a small exchange",
            EXCHANGE_US,
            "us",
            "published",
            "over NVLink; PCIe is slower",
        ),
        Number("time between kernels", rates.launch_us, "us", "published", "on an H200")
        if not fitted
        else Number("of a tick beside its ops", rates.fixed_ms, "ms", "fitted", gpu.source),
        Number("sessions that memory holds", held, "", "formula"),
        Number(
            "of them in time",
            in_time,
            "",
            "fitted" if fitted else "assumed",
            "at what is attained",
        ),
        Number("of them in time at the floor", at_floor, "", mark, "none gets past it"),
    )
    return Plan(
        preset,
        gpu.name,
        count,
        tick_ms,
        context,
        dtype,
        in_time,
        limit,
        numbers,
        tuple(level(n) for n in shown),
    )


def _attained(rates: Rates) -> Iterator[Number]:
    if rates.measured is None:
        note = "see ATTAINED in plan.py"
        yield Number("attained of both rates", rates.attained, "", "assumed", note)
    for op, share in rates.by_op.items():
        yield Number(f"attained by {op}", share, "", "fitted", rates.measured or "")


def rates_of(profile: Profile, memory_gb: float) -> tuple[Gpu, Rates]:
    """A machine as a profile (see `document`) measured it. Raises ValueError where the profile has
    no floors.
    """
    about = f"profile of {profile['case']}"
    found = {loss.op: loss for loss in losses(profile) if loss.floor_ms and loss.ms}
    if not found:
        raise ValueError(f"the {about} has no floors of ops: its family does not say what it costs")
    by_op = {op: share for op, loss in found.items() if (share := loss.of_floor)}
    fixed = waterfall(profile)[1] - sum(loss.ms for loss in found.values())
    every = sum(loss.floor_ms or 0 for loss in found.values()) / sum(n.ms for n in found.values())
    ceilings = profile["ceilings"]
    machine = Gpu(
        profile["device"], memory_gb, ceilings["read_gbps"], ceilings["tflops"], 1.0, about
    )
    return machine, Rates(every, by_op, 0.0, max(0.0, fixed), about)


def floors(calls: Iterable[OpCall], gpu: Gpu, dtype: str) -> Iterator[tuple[OpCall, float, float]]:
    """Of each call its bytes and the ms below which no such GPU can do it."""
    for call in calls:
        nbytes, flops = _cost(call, dtype)
        yield call, nbytes, max(nbytes / gpu.read_gbps / 1e6, flops / gpu.tflops / 1e9)


def call_bytes(call: OpCall, dtype: str) -> int:
    """With weights of the trunk as they are stored; keys, values and the rest have 16 bits."""
    return _cost(call, dtype)[0]


@lru_cache(maxsize=4096)
def _cost(call: OpCall, dtype: str) -> tuple[int, int]:
    """Bytes and flops; the layers of a pass are alike."""
    return cost.call_bytes(call, 4 if dtype == "fp32" else WIDTH, dtype), call.case.flops


def weight_bytes(model: Any) -> int:
    """Of all weights as they are stored."""
    from microturn.kernels.quantized import Quantized

    def tensors() -> Iterator[Any]:
        for module in model.modules():
            yield from module.parameters(recurse=False)
            yield from module.buffers(recurse=False)
            for value in vars(module).values():
                if isinstance(value, Quantized):
                    yield from (value.values, value.scales)

    return sum(tensor.numel() * tensor.element_size() for tensor in tensors())


def _level(
    family: InteractionFamily,
    gpu: Gpu,
    count: int,
    sessions: int,
    dtype: str,
    rates: Rates,
    memory_gb: float,
) -> Level:
    rows = sessions * (1 + family.shape.frames)
    found = list(floors(family.calls(even(sessions, rows, family.window_rows)), gpu, dtype))
    parts: dict[str, float] = {}
    taken = {"bytes": 0.0, "flops": 0.0}
    for call, nbytes, ms in found:
        parts[call.part] = parts.get(call.part, 0.0) + ms
        what = "bytes" if nbytes / gpu.read_gbps / 1e6 >= ms else "flops"
        taken[what] += ms / rates.of(call.op)
    floor = sum(parts.values())
    taken["exchanges"] = exchange = exchange_ms(family, gpu, count, sessions)
    taken["launches"] = launch = len(found) * rates.launch_us / 1000 + rates.fixed_ms
    return Level(
        sessions,
        sum(nbytes for _, nbytes, _ in found) / 1e9,
        parts,
        floor,
        exchange,
        launch,
        sum(taken.values()),
        memory_gb,
        max(taken, key=lambda what: taken[what]),
    )


def _exchanges(family: InteractionFamily, count: int) -> int:
    """Between ranks in a tick: of the append pass and every single-row pass."""
    if count == 1:
        return 0
    return EXCHANGES * family.config.trunk.num_layers * family.shape.frames


def _most(fits: Callable[[int], bool], up_to: int) -> int:
    """The largest number of sessions that fits; what fits is taken to fit with fewer."""
    return bisect_left(range(1, up_to + 1), True, key=lambda n: not fits(n))


def exchange_ms(family: InteractionFamily, gpu: Gpu, count: int, sessions: int) -> float:
    """All exchanges of a tick; the append pass has 1 + F rows a session, the others one."""
    if count == 1:
        return 0.0
    rows = 2 * family.shape.frames * sessions
    nbytes = rows * family.config.trunk.hidden_size * WIDTH * EXCHANGES
    moved = 2 * (count - 1) / count * nbytes * family.config.trunk.num_layers
    return _exchanges(family, count) * EXCHANGE_US / 1e3 + moved / gpu.link_gbps / 1e6


def to_json(made: Plan) -> str:
    """{"schema": 1, "kind": "plan", ...} and the fields of Plan."""
    document = {"schema": SCHEMA, "kind": "plan", **asdict(made)}
    return json.dumps(document, allow_nan=False, indent=1) + "\n"


def sentence(made: Plan) -> str:
    """The answer."""
    gpus = f"{made.count} {made.gpu}" if made.count > 1 else f"one {made.gpu}"
    if not made.sessions:
        return f"{made.preset} in {made.dtype} does not fit {gpus}: {made.limit} is short."
    last = next(level for level in made.levels if level.sessions == made.sessions)
    return (
        f"{made.preset} in {made.dtype} on {gpus}: {made.sessions} sessions at a tick of "
        f"{made.tick_ms} ms and {made.context} keys, limited by {made.limit}; then a step is "
        f"expected to take {last.step_ms:.1f} ms (floor {last.floor_ms:.1f} ms), most of it "
        f"{last.binds}. "
        + ("Nothing of this was measured" if _guessed(made) else "Rates are the profile's")
        + ("; the runtime itself steps one GPU so far." if made.count > 1 else ".")
    )


def _guessed(made: Plan) -> bool:
    return not any(number.mark in ("measured", "fitted") for number in made.numbers)


def numbers(made: Plan) -> Table:
    rows = tuple((n.name, f"{n.value:.5g} {n.unit}".strip(), n.mark, n.note) for n in made.numbers)
    return Table("Numbers", "", ("what", "value", "mark", "from"), rows)


def levels(made: Plan) -> Table:
    def sums(level: Level, part: str) -> str:
        return f"{sum(ms for name, ms in level.parts.items() if name.startswith(part)):.2f}"

    parts = ("append", "decode", "heads", "codec")
    rows = tuple(
        (
            str(level.sessions),
            f"{level.gigabytes:.1f}",
            *(sums(level, part) for part in parts),
            f"{level.floor_ms:.2f}",
            f"{level.exchange_ms:.2f}",
            f"{level.launch_ms:.2f}",
            f"{level.step_ms:.1f}",
            f"{level.memory_gb:.1f}",
            level.binds,
        )
        for level in made.levels
    )
    head = (
        "sessions",
        "GB",
        *parts,
        "floor",
        "exchanges",
        "launches",
        "step",
        "memory GB",
        "binds",
    )
    note = "A tick on each GPU, windows full; times in ms, parts are floors."
    return Table("Ticks", note, head, rows)


def sizing(gpus: Iterable[Gpu], presets: Iterable[tuple[str, str, int, int]]) -> Table:
    """presets: name, dtype, tick_ms and context, each a column: on how few GPUs of a kind, up to 8,
    it fits, and how many sessions then.
    """
    presets = tuple(presets)
    rows = []
    for gpu in gpus:
        cells = [_fewest(gpu, *preset) for preset in presets]
        rows.append((gpu.name, f"{gpu.memory_gb:g} GB, {gpu.read_gbps / 1000:g} TB/s d", *cells))
    head = ("GPU", "datasheet", *(f"{name} {dtype}" for name, dtype, _, _ in presets))
    note = (
        f"GPUs x sessions. d: by datasheets, bound by memory or in brackets by their rates, which "
        f"none gets past; a: at {ATTAINED:.0%} of the rates, which is assumed. None is measured or "
        f"fitted."
    )
    return Table("Sizing", note, head, tuple(rows))


def _fewest(gpu: Gpu, preset: str, dtype: str, tick_ms: int, context: int) -> str:
    for count in (1, 2, 4, 8):
        try:
            made = plan(preset, gpu, count=count, tick_ms=tick_ms, context=context, dtype=dtype)
        except ValueError:  # cannot be cut so
            break
        if made.sessions:
            if made.limit == "memory":
                return f"{count} x: {made.sessions} d"
            return f"{count} x: {made.sessions} a ({made.numbers[-1].value:.0f} d)"
    return "no"
