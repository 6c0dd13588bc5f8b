"""The compile gate: every kernel, as launched for every bench case, compiled for sm_90.

    python -m microturn.kernels.gate [OP ...]

prints one JSON row a distinct binary and exits with 1 when a row has problems. It needs no GPU.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from microturn.kernels.compiled import SHARED_LIMIT, Binary, compiling, inspect
from microturn.kernels.launch import Launch
from microturn.kernels.loads import WIDE, loads_of, parameters
from microturn.kernels.registry import OPS, Case, Op, get
from microturn.kernels.testing import DTYPES

LEAST_STREAM = 1 << 16
"""Bytes of the smallest tensor that counts as streamed."""


class Row(NamedTuple):
    """One binary, the first case that launched it, and what is wrong with it."""

    op: str
    case: str
    dtype: str
    grid: tuple[int, ...]
    binary: Binary
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        b = self.binary
        return {
            "op": self.op,
            "case": self.case,
            "dtype": self.dtype,
            "kernel": b.name,
            "grid": list(self.grid),
            "registers": b.registers,
            "spilled": b.spilled,
            "shared": b.shared,
            "threads": b.threads,
            "blocks_per_sm": b.blocks_per_sm,
            "occupancy": b.occupancy,
            "wgmma": b.wgmma,
            "problems": list(self.problems),
        }


def launches_of(op: Op, case: Case, dtype: str) -> list[Launch]:
    """What one call of the op would launch on a GPU, compiled for sm_90."""
    with compiling() as launches, torch.inference_mode():
        op.run(*op.make_inputs(case, dtype=DTYPES[dtype], device="meta"))
    return launches


def gate(op: Op) -> Iterator[Row]:
    """Every distinct binary of an op's bench cases.

    Raises ValueError at the end where `Op.narrow_loads` excuses what needs no excuse.
    """
    seen: set[str] = set()
    needed: set[str] = set()
    for case in op.bench_cases:
        for dtype in op.dtypes:
            for launch in launches_of(op, case, dtype):
                if launch.compiled.hash in seen:
                    continue
                seen.add(launch.compiled.hash)
                binary = inspect(launch)
                problems = tuple(problems_of(launch, binary, op.narrow_loads))
                needed |= {_excuse(launch, pointer) for pointer in narrow_streams(launch)}
                yield Row(op.name, case.id, dtype, launch.grid, binary, problems)
    if idle := op.narrow_loads.keys() - needed:
        raise ValueError(f"{op.name}: NARROW_LOADS names {', '.join(sorted(idle))} for nothing")


_INTEGERS = ("!tt.ptr<i16", "!tt.ptr<i32", "!tt.ptr<i64")
_DOT = re.compile(r"tt\.dot .*-> tensor<(\d+)x(\d+)xf32>")


def problems_of(launch: Launch, binary: Binary, narrow_loads: dict[str, str]) -> Iterator[str]:
    """What keeps a compiled launch from shipping; narrow_loads as `Op.narrow_loads`."""
    if binary.spilled:
        yield f"spills {binary.spilled} bytes a thread"
    if binary.shared > SHARED_LIMIT:
        yield f"wants {binary.shared} bytes of shared memory, {SHARED_LIMIT} are there"
    dots = [(int(m), int(n)) for m, n in _DOT.findall(launch.compiled.asm["ttir"])]
    if any(m >= 64 and n >= 16 for m, n in dots) and binary.threads >= 128 and not binary.wgmma:
        yield f"has dots of {dots} but no wgmma"
    for pointer, width in narrow_streams(launch).items():
        if _excuse(launch, pointer) not in narrow_loads:
            size = launch.arguments.get(pointer)
            much = "" if size is None else f", {size / 1e6:.3g} MB,"
            yield f"reads {pointer}{much} {width} bytes at a time"


def _excuse(launch: Launch, pointer: str) -> str:
    """The name in `Op.narrow_loads` of a pointer that is read narrow."""
    return f"{launch.name}.{pointer}"


def narrow_streams(launch: Launch) -> dict[str, int]:
    """The narrowest load, in bytes a thread, of each operand that a launch streams, where that is
    less than 16.

    Streamed is a tensor of 64 KiB or more that is at least a hundredth of all that the kernel loads
    from. Integers are not, save in kernels of 8-bit data (FP8), which come packed into them: else
    they say where to look, and kernels read a few of many. A kernel that finds its data by
    addresses kept in memory streams those, whose sizes are not known here: a tenth of the bytes in
    their loads may come by narrow ones, since gains lie beside matrices.
    """
    widths: dict[str, list[int]] = defaultdict(list)
    for load in loads_of(launch.compiled):
        for pointer in load.pointers:
            widths[pointer].append(load.nbytes)
    kinds = parameters(launch.compiled)
    read = sum(
        size
        for name, size in launch.arguments.items()
        if name in widths or kinds.get(name, "").startswith("!tt.tensordesc")
    )

    def streamed(pointer: str) -> bool:
        if any(name.startswith("*") for name in widths):
            narrow = sum(width for width in widths[pointer] if width < WIDE)
            return pointer.startswith("*") and 10 * narrow >= sum(widths[pointer])
        if kinds[pointer].startswith(_INTEGERS) and not launch.constants.get("FP8"):
            return False
        return launch.arguments.get(pointer, 0) >= max(LEAST_STREAM, read // 100)

    narrowest = {pointer: min(found) for pointer, found in widths.items() if streamed(pointer)}
    return {pointer: width for pointer, width in narrowest.items() if width < WIDE}


def main(names: list[str]) -> int:
    """Rows as JSON lines; 1 when any has problems."""
    failed = False
    for op in [get(name) for name in names] or OPS.values():
        for row in gate(op):
            failed |= bool(row.problems)
            print(json.dumps(row.as_json()), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
