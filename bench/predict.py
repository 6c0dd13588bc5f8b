"""The `predicted` suite: what each bench case should take on an H200, from its bytes, its flops and
what the compiler made of it. Nothing here has run on a GPU.

    us = sum over launches of  BOUNDARY + LATENCY + max(stream, compute) + barriers * STAGE

stream   bytes that the launch moves, at the rate of the blocks that are resident: a block keeps
         `in_flight` bytes under way (of its pipeline in shared memory all stages but the one in
         use; without a pipeline 16 bytes for each wide load in its code and each thread), so by
         Little's law n blocks read n * in_flight / LATENCY, and READ times `attained` at most.
         Blocks that do not fit wait: whole rounds of the machine, then a last one of fewer blocks
compute  tiles of the launch's product, dealt out to the multiprocessors: a tile takes its flops
         over the matrix unit's rate or its loads over the L2's, and, unless another block of the
         multiprocessor works meanwhile, TILE to begin and to end

What a launch moves: of the op's own tensors (arguments, weights, state) its part of the case's
bytes, in proportion to what it was given of them or reaches by address; and all of what ops pass
among themselves or give back. Neither is more than its code asks for, where `bench.demand` can tell
from loops of written length. Only launches with dots have flops: where the code says how many, all
of them, padding too; else their part of the case's, in the tiles that `case.tiled` says rows fill.

Constants. From datasheets: FP32, the L2's 5120 bytes a cycle (L2: at 1.6 GHz). From measurements by
others, `bench.published`: BOUNDARY between kernels of a graph, of which programmatic dependent
launch gives PDL_BACK back to the second and later ones; LATENCY, from the first load of a launch to
its first data, which makes the 2.1 us that a small kernel costs in a graph; STAGE, a grid barrier
and the loads that wait for it; BF16, a product of 8192^3 on such a host; ATTAINED, what kernels of
this kind reach of READ once launches are taken off (Triton's experts and FA3, from 0.2 GB) and of
BF16 (the best, experts on H800; FA3's forward; Liger on the shape of our prefill case): the best,
the middle and the worst of them are p20, p50 and p80 of a row. Assumed: READ, TILE (twice LATENCY),
WITHOUT_WGMMA. None is fitted to a bar. How far the model is off for kernels by others is in the
document's meta: p50 is within 6 % of calls that move 0.5 GB and more, too fast by a seventh at
0.1 GB, by a fifth for Liger and by half for attention calls of 10 us. So what it says of short
calls is a floor.

Not in the model: misses in the instruction cache, bank conflicts, imbalance between blocks, rows
that are gathered from memory more than once, weights and activations that a persistent kernel reads
again from the L2 (the depth head's), the work of turning 8-bit weights into bf16, and the events
around a measurement.

Rows add to those of `bench.rows`: launches (kernels of a call), barriers, bound ("stream",
"compute" or "launches": what takes most), grid, waves and occupancy of the launch that moves most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import prod
from typing import Any, NamedTuple

from microturn.bench import rows
from microturn.bench.demand import Demand, demand, element_bytes
from microturn.bench.rows import Row
from microturn.bench.subjects import Item, Subject, case_of
from microturn.bench.subjects import nbytes as nbytes_of
from microturn.kernels.compiled import Binary
from microturn.kernels.launch import H200_SMS
from microturn.runtime.ceilings import Ceilings

DEVICE = "predicted for NVIDIA H200"
PROVIDER = "predicted"
SUITE = "ops"

READ_TBPS = 4.4
L2_TBPS = 8.2
BF16_TFLOPS = 780.0
FP32_TFLOPS = 60.0
WITHOUT_WGMMA = 0.62
BOUNDARY_US = 1.3
PDL_BACK_US = 0.96
LATENCY_US = 0.8
STAGE_US = 1.75
TILE_US = 1.6


class Attained(NamedTuple):
    """Of READ while a kernel streams, of BF16 in the inner loop of its product."""

    read: float
    loop: float


ATTAINED = {
    "us_p20": Attained(0.985, 0.91),
    "us_p50": Attained(0.965, 0.87),
    "us_p80": Attained(0.91, 0.75),
}
IDEAL = Attained(1.0, 1.0)
UNKNOWN = Demand()

CEILINGS = Ceilings(READ_TBPS * 1000, 4300.0, BF16_TFLOPS, "bf16")


@dataclass(frozen=True)
class Part:
    """One launch as the model sees it.

    in_flight: bytes a block keeps under way; own: bytes of the op's own tensors among those it was
    given, passed: of all others; flops: of its share; filled: rows there are over rows that its
    tiles hold
    """

    name: str
    blocks: int
    binary: Binary
    in_flight: float
    own: float
    passed: float
    flops: float = 0.0
    demand: Demand = UNKNOWN
    filled: float = 1.0
    barriers: int = 0
    pdl: bool = False

    @property
    def fit(self) -> int:
        """Blocks the machine holds at once."""
        return H200_SMS * max(1, self.binary.blocks_per_sm)

    @property
    def resident(self) -> int:
        """Blocks on the machine at once."""
        return min(self.blocks, self.fit)

    @property
    def dots(self) -> bool:
        return any("MMA" in name for name in self.binary.instructions)

    @property
    def asked(self) -> float:
        """Bytes its code can move at most."""
        each = self.demand.nbytes
        return float("inf") if each is None else float(each) * self.blocks

    def us(self, attained: Attained) -> dict[str, float]:
        """By what takes them; of streaming and computing, which overlap, the longer."""
        stream = self.stream_us(self.own + self.passed, attained)
        compute = self.compute_us(attained)
        fixed = BOUNDARY_US + LATENCY_US + self.barriers * STAGE_US
        if stream >= compute:
            return {"launches": fixed, "stream": stream}
        return {"launches": fixed, "compute": compute}

    def stream_us(self, nbytes: float, attained: Attained = IDEAL) -> float:
        """To move so many bytes."""
        per_block = nbytes / self.blocks
        rounds, rest = divmod(self.blocks, self.fit)
        return sum(
            count * blocks * per_block / self._rate(blocks, attained.read) / 1e6
            for count, blocks in ((rounds, self.fit), (1, rest))
            if count * blocks
        )

    def _rate(self, blocks: int, of_read: float) -> float:
        """TB/s."""
        return min(READ_TBPS * of_read, blocks * self.in_flight / LATENCY_US / 1e6)

    def compute_us(self, attained: Attained = IDEAL) -> float:
        """To do its flops."""
        if not self.flops:
            return 0.0
        tflops = self.peak_tflops * (attained.loop if self.dots else 1.0)
        each_sm = tflops * 1e6 / H200_SMS
        if self.demand.tile is None:
            busiest = -(-self.blocks // H200_SMS) / (self.blocks / H200_SMS)
            return busiest * self.flops / tflops / 1e6
        tile = self.demand.tile
        tiles = -(-max(1, round(self.flops / tile.flops)) // H200_SMS)
        loads = tile.nbytes - (1 - self.filled) * tile.masked
        one = max(tile.flops / each_sm, loads * H200_SMS / L2_TBPS / 1e6)
        together = min(self.binary.blocks_per_sm, -(-self.blocks // H200_SMS), tiles)
        ends = tiles * max(0.0, (one + TILE_US) / max(1, together) - one)
        # The beginning of the first tile is the launch's LATENCY.
        return tiles * one + max(0.0, ends - LATENCY_US)

    @property
    def peak_tflops(self) -> float:
        """Of the instructions it multiplies with."""
        if not self.dots:
            return FP32_TFLOPS
        if not self.binary.wgmma:
            return BF16_TFLOPS * WITHOUT_WGMMA
        return BF16_TFLOPS * max(map(_fed, self.binary.instructions))


_WGMMA = re.compile(r"[HQ]GMMA\.64x(\d+)x")


def _fed(instruction: str) -> float:
    """Of its rate, what shared memory can feed: N / 2 cycles want 64 x 16 and N x 16 values, at
    128 bytes a cycle.
    """
    found = _WGMMA.match(instruction)
    if found is None:
        return 0.0
    n = int(found[1])
    return min(1.0, (n / 2) / (16 + n / 4))


MOST_STAGES = 8
"""A first size above this is a tile's, not a pipeline's."""
_BUFFERS = re.compile(r"ttg\.local_alloc\b.*?memdesc<(\d+)x((?:\d+x)+)([a-z]+\d+)")


def in_flight(binary: Binary, ttgir: str) -> float:
    """Bytes a block keeps under way, from Triton's text of the kernel: a pipeline's buffers in
    shared memory have the stage as their first size.
    """
    piped = 0.0
    for stages, sizes, element in _BUFFERS.findall(ttgir):
        one = prod(int(n) for n in sizes.split("x") if n) * element_bytes(element)
        if sizes.count("x") > 1 or int(stages) <= MOST_STAGES:
            piped += (int(stages) - 1) * one
    if piped:
        return float(min(piped, binary.shared))
    wide = sum(
        n for name, n in binary.instructions.items() if name.startswith("LDG.") and "128" in name
    )
    return 16.0 * max(1, wide) * binary.threads


def predict_us(parts: Sequence[Part], attained: Attained) -> dict[str, float]:
    """Of one call, by what takes them. Every op launches something."""
    total: dict[str, float] = {}
    for index, part in enumerate(parts):
        for what, us in part.us(attained).items():
            total[what] = total.get(what, 0.0) + us
        if part.pdl and index:
            total["launches"] -= PDL_BACK_US
    return total


def share(parts: Sequence[Part], nbytes: int, given_back: int, flops: int) -> list[Part]:
    """The parts with their bytes and flops, of a case that has so many.

    given_back: bytes of the result, which are of the case's and count as passed
    """
    most = [replace(part, own=min(part.own, part.asked)) for part in parts]
    own = sum(part.own for part in most) or 1.0
    scale = max(0.0, nbytes - given_back) / own
    with_dots = [part for part in most if part.dots] or most
    known = sum(part.flops for part in with_dots)
    unknown = sum(part.own for part in with_dots if not part.flops) or 1.0
    rest = max(0.0, flops - known)
    found = []
    for part in most:
        moved = min(part.asked, scale * part.own + part.passed)
        takes = part in with_dots
        done = (part.flops or rest * part.own / unknown) if takes else 0.0
        found.append(replace(part, own=moved - part.passed, flops=done / part.filled))
    return found


_known: dict[str, tuple[Binary, Demand, float]] = {}
"""What was read from a compiled kernel, by its hash: cases share kernels."""


def parts_of(subject: Subject, item: Item) -> list[Part]:
    """What a call launches, compiled for sm_90."""
    import torch

    from microturn.kernels.compiled import compiling, inspect
    from microturn.kernels.launch import storages
    from microturn.kernels.testing import DTYPES
    from microturn.kernels.tree import tensors

    case = case_of(subject, item.case)
    with compiling() as launches, torch.inference_mode():
        inputs = subject.make_inputs(case, dtype=DTYPES[item.dtype], device="meta")
        result = subject.run(*inputs)
    ours = storages(tensors(tuple(inputs)))
    given_back = sum(n for key, n in storages(tensors(result)).items() if key not in ours)
    tiled = getattr(case, "tiled", None)
    found = []
    for launch in launches:
        key, text = launch.compiled.hash, launch.compiled.asm
        if key not in _known:
            binary = inspect(launch)
            _known[key] = binary, demand(text["ttir"]), in_flight(binary, text["ttgir"])
        binary, asked, under_way = _known[key]
        blocks = prod(launch.grid)
        own = sum(n for key, n in launch.given.items() if key in ours)
        # A case that knows how rows fill tiles knows better than a grid, which may be too large.
        counted = 0 if asked.flops is None or tiled is not None else asked.flops * blocks
        found.append(
            Part(
                launch.name,
                blocks,
                binary,
                under_way,
                own,
                sum(launch.given.values()) - own,
                counted,
                asked,
                1.0 if tiled is None else 1 / tiled(launch.constants),
                launch.barriers,
                bool(getattr(launch.compiled.metadata, "launch_pdl", False)),
            )
        )
    return share(found, nbytes_of(case, item.dtype), given_back, case.flops)


def row(subject: Subject, item: Item) -> Row:
    """The prediction of one case beside its bar."""
    case = case_of(subject, item.case)
    known = rows.costs(case, item.dtype, CEILINGS)
    try:
        parts = parts_of(subject, item)
    except Exception as error:  # whatever the compiler or a launcher says: it is the result
        text = f"{type(error).__name__}: {error}"
        return rows.null(item, PROVIDER, f"does not compile: {text[-400:]}", False)
    if not parts:
        return rows.null(item, PROVIDER, "launches nothing", None)
    taken = {key: predict_us(parts, attained) for key, attained in ATTAINED.items()}
    times = {key: round(sum(by.values()), 2) for key, by in taken.items()}
    by = taken["us_p50"]
    main = max(parts, key=lambda part: part.own + part.passed)
    made = {
        **item._asdict(),
        "provider": PROVIDER,
        **times,
        **known,
        **rows.fractions(known, times["us_p50"]),
        "max_rel_err": None,
        "launches": len(parts),
        "barriers": sum(part.barriers for part in parts),
        "bound": max(by, key=lambda what: by[what]),
        "kernel": main.name,
        "grid": main.blocks,
        "waves": round(main.blocks / main.fit, 2),
        "blocks_per_sm": main.binary.blocks_per_sm,
        "occupancy": main.binary.occupancy,
        "kb_in_flight_per_sm": round(
            main.in_flight * main.resident / min(main.blocks, H200_SMS) / 1024, 1
        ),
        "note": "predicted, not measured",
    }
    return made | rows.against(rows.bar_of(case, subject.dtypes, item.dtype), made)


def document(found: Iterable[Row]) -> dict[str, Any]:
    """Rows of `row` as a document."""
    import torch

    from microturn.bench import published, schema
    from microturn.runtime import machine

    meta = {
        "device": DEVICE,
        "torch": torch.__version__,
        "triton": machine.version("triton"),
        "git": machine.git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ceilings": CEILINGS.as_meta(),
        "assumed": {
            "boundary_us": BOUNDARY_US,
            "pdl_gives_back_us": PDL_BACK_US,
            "latency_us": LATENCY_US,
            "stage_us": STAGE_US,
            "tile_us": TILE_US,
            "l2_tbps": L2_TBPS,
            "attained": {key: of._asdict() for key, of in ATTAINED.items()},
            "fp32_tflops": FP32_TFLOPS,
            "without_wgmma": WITHOUT_WGMMA,
        },
        "published": published.as_meta(),
        "timing": "none: a model of bytes, launches and occupancy, see bench/predict.py",
    }
    return schema.document(SUITE, meta, rows.beside_cases(found))


COLUMNS = {
    "what": "op, case, dtype",
    "us": "predicted us",
    "floor": "floor us",
    "of_floor": "% ceiling",
    "bar": "bar",
    "ok": "ok",
    "bound": "bound by",
    "launches": "launches",
    "barriers": "barriers",
    "grid": "grid",
    "waves": "waves",
    "occupancy": "occupancy",
    "flight": "KB in flight/SM",
}


def line(row: Row) -> dict[str, str]:
    """Cells of the table."""
    from microturn.bench import tables

    made = {"what": f"{row['op']} {row['case']} {row['dtype']}", "bar": tables.bar_text(row)}
    if row["us_p50"] is None:
        return made | {"us": "-", "ok": row["note"][:60]}
    return made | {
        "us": tables.number(row["us_p50"]),
        "floor": tables.number(row["floor_us"]),
        "of_floor": f"{100 * row['of_floor']:.1f}",
        "ok": tables.verdict(row),
        "bound": row["bound"],
        "launches": str(row["launches"]),
        "barriers": str(row["barriers"]),
        "grid": str(row["grid"]),
        "waves": f"{row['waves']:.2f}",
        "occupancy": f"{100 * row['occupancy']:.0f} %",
        "flight": f"{row['kb_in_flight_per_sm']:.0f}",
    }
