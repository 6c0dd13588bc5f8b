"""The `predicted` suite: what each bench case should take on an H200, from its bytes, its flops and
what the compiler made of it. Nothing here has run on a GPU.

The model, with no constant fitted to any bar:

    us = sum over launches of  BOUNDARY + LATENCY + max(stream, compute) + barriers * STAGE

BOUNDARY 1.3 us between kernels of a graph; under programmatic dependent launch the second and later
         ones get 0.96 us of it back, the most that was measured for an empty pair
LATENCY  0.8 us: from the first load of a launch to its first data, once. With BOUNDARY it makes the
         2.1 us that a small kernel costs in a graph on an H100
STAGE    1.75 us a grid barrier and the loads that must wait for it (1.5 to 2 were seen)
stream   the launch's bytes over the read rate of the blocks that are resident. A block keeps
         `in_flight` bytes under way: of its pipeline in shared memory all stages but the one in
         use; without a pipeline 16 bytes for each wide load in its code and each thread. By
         Little's law n blocks read n * in_flight / LATENCY, READ at most. Blocks that do not
         fit wait: whole rounds of the machine, then a last round at the rate of its fewer blocks
compute  flops over BF16 (0.62 of it without wgmma; FP32 without any dot), by the multiprocessor
         with the most blocks

An op's bytes and flops (of its case) are divided among its launches as the bytes of the tensors
they were given; those that are larger than their part (whole arenas, experts that nobody hit) keep
that proportion. READ 4.4 TB/s is what reading alone is expected to reach, BF16 780 TFLOP/s what a
product of 8192^3 was seen to reach; both are measured in every run on a GPU.

Not in the model: misses in the instruction cache, bank conflicts, imbalance between blocks, weights
read again from the L2 (the depth head's, every codebook), and the events around a measurement.

Rows add to those of `bench.rows`: launches (kernels of a call), barriers, grid, waves and occupancy
of the launch with the most bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from typing import Any, cast

from microturn.bench import rows
from microturn.bench.ceilings import Ceilings
from microturn.bench.rows import Row
from microturn.bench.subjects import Item, Subject, case_of
from microturn.kernels.compiled import Binary
from microturn.kernels.launch import H200_SMS
from microturn.kernels.registry import Op

DEVICE = "predicted for NVIDIA H200"
PROVIDER = "predicted"
SUITE = "ops"

READ_TBPS = 4.4
BF16_TFLOPS = 780.0
FP32_TFLOPS = 60.0
WITHOUT_WGMMA = 0.62
BOUNDARY_US = 1.3
PDL_BACK_US = 0.96
LATENCY_US = 0.8
STAGE_US = 1.75

CEILINGS = Ceilings(READ_TBPS * 1000, 4300.0, BF16_TFLOPS, "bf16")


@dataclass(frozen=True)
class Part:
    """One launch as the model sees it.

    in_flight: bytes a block keeps under way; nbytes: of the tensors it was given, all of them
    """

    name: str
    blocks: int
    binary: Binary
    in_flight: float
    nbytes: int
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

    def stream_us(self, nbytes: float) -> float:
        """To move so many bytes."""
        per_block = nbytes / self.blocks
        rounds, rest = divmod(self.blocks, self.fit)
        return sum(
            count * blocks * per_block / self._rate(blocks) / 1e6
            for count, blocks in ((rounds, self.fit), (1, rest))
            if count * blocks
        )

    def _rate(self, blocks: int) -> float:
        """TB/s."""
        return min(READ_TBPS, blocks * self.in_flight / LATENCY_US / 1e6)

    def compute_us(self, flops: float) -> float:
        """To do so many flops."""
        peak = FP32_TFLOPS
        if self.dots:
            peak = BF16_TFLOPS * (1 if self.binary.wgmma else WITHOUT_WGMMA)
        busiest = -(-self.blocks // H200_SMS) / (self.blocks / H200_SMS)
        return busiest * flops / peak / 1e6


MOST_STAGES = 8
"""A first size above this is a tile's, not a pipeline's."""
_BUFFERS = re.compile(r"ttg\.local_alloc\b.*?memdesc<(\d+)x((?:\d+x)+)([a-z]+\d+)")


def in_flight(binary: Binary, ttgir: str) -> float:
    """Bytes a block keeps under way, from Triton's text of the kernel: a pipeline's buffers in
    shared memory have the stage as their first size.
    """
    piped = 0
    for stages, sizes, element in _BUFFERS.findall(ttgir):
        one = prod(int(n) for n in sizes.split("x") if n) * _bits(element) // 8
        if sizes.count("x") > 1 or int(stages) <= MOST_STAGES:
            piped += (int(stages) - 1) * one
    if piped:
        return float(min(piped, binary.shared))
    wide = sum(
        n for name, n in binary.instructions.items() if name.startswith("LDG.") and "128" in name
    )
    return 16.0 * max(1, wide) * binary.threads


def _bits(element: str) -> int:
    """Of "bf16", "f32", "i8", "f8E4M3FN"."""
    return int(re.sub(r"^[a-z]+(\d+).*", r"\1", element))


def predict_us(parts: Sequence[Part], nbytes: int, flops: int) -> float:
    """Of one call. Every op launches something."""
    given = sum(part.nbytes for part in parts)
    total = 0.0
    for index, part in enumerate(parts):
        share = part.nbytes / given
        boundary = BOUNDARY_US - (PDL_BACK_US if part.pdl and index else 0.0)
        work = max(part.stream_us(share * nbytes), part.compute_us(share * flops))
        total += boundary + LATENCY_US + work + part.barriers * STAGE_US
    return total


def parts_of(subject: Subject, item: Item) -> list[Part]:
    """What a call launches, compiled for sm_90."""
    from microturn.kernels.compiled import inspect
    from microturn.kernels.gate import launches_of

    case = case_of(subject, item.case)
    found = []
    known: dict[str, Binary] = {}
    for launch in launches_of(cast(Op, subject), case, item.dtype):
        binary = known.get(launch.compiled.hash)
        if binary is None:
            binary = known[launch.compiled.hash] = inspect(launch)
        metadata = launch.compiled.metadata
        found.append(
            Part(
                launch.name,
                prod(launch.grid),
                binary,
                in_flight(binary, launch.compiled.asm["ttgir"]),
                launch.nbytes,
                launch.barriers,
                bool(getattr(metadata, "launch_pdl", False)),
            )
        )
    return found


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
    us = round(predict_us(parts, known["bytes"], known["flops"]), 2)
    main = max(parts, key=lambda part: part.nbytes)
    made = {
        **item._asdict(),
        "provider": PROVIDER,
        "us_p20": us,
        "us_p50": us,
        "us_p80": us,
        **known,
        **rows.fractions(known, us),
        "max_rel_err": None,
        "launches": len(parts),
        "barriers": sum(part.barriers for part in parts),
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

    from microturn.bench import schema
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
            "fp32_tflops": FP32_TFLOPS,
            "without_wgmma": WITHOUT_WGMMA,
        },
        "timing": "none: a model of bytes, launches and occupancy, see bench/predict.py",
    }
    return schema.document(SUITE, meta, list(found))


COLUMNS = {
    "what": "op, case, dtype",
    "us": "predicted us",
    "floor": "floor us",
    "of_floor": "% ceiling",
    "bar": "bar",
    "ok": "ok",
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
        "launches": str(row["launches"]),
        "barriers": str(row["barriers"]),
        "grid": str(row["grid"]),
        "waves": f"{row['waves']:.2f}",
        "occupancy": f"{100 * row['occupancy']:.0f} %",
        "flight": f"{row['kb_in_flight_per_sm']:.0f}",
    }
