"""The compile gate: every kernel, as launched for every bench case, compiled for sm_90.

    python -m microturn.kernels.gate [OP ...]

prints one JSON row a distinct binary and exits with 1 when a row has problems. It needs no GPU.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from microturn.kernels.compiled import SHARED_LIMIT, Binary, compiling, inspect
from microturn.kernels.launch import Launch
from microturn.kernels.registry import OPS, Case, Op, get
from microturn.kernels.testing import DTYPES


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
            "wide_loads": b.wide_loads,
            "problems": list(self.problems),
        }


def launches_of(op: Op, case: Case, dtype: str) -> list[Launch]:
    """What one call of the op would launch on a GPU, compiled for sm_90."""
    with compiling() as launches, torch.inference_mode():
        op.run(*op.make_inputs(case, dtype=DTYPES[dtype], device="meta"))
    return launches


def gate(op: Op) -> Iterator[Row]:
    """Every distinct binary of an op's bench cases."""
    seen: set[str] = set()
    for case in op.bench_cases:
        for dtype in op.dtypes:
            for launch in launches_of(op, case, dtype):
                if launch.compiled.hash in seen:
                    continue
                seen.add(launch.compiled.hash)
                binary = inspect(launch)
                problems = tuple(problems_of(launch, binary, op.narrow_loads))
                yield Row(op.name, case.id, dtype, launch.grid, binary, problems)


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
    if not binary.wide_loads and launch.name not in narrow_loads:
        yield "loads nothing 16 bytes at a time"


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
