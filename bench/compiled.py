"""The `compile` suite: what every bench case launches on an H200, compiled here for sm_90.

Nothing is timed (us_p50 is null). Rows add to schema 1: launches (kernels of a call), kernels (each
distinct one: name, grid, registers a thread, spilled, shared bytes a block, threads, blocks_per_sm,
occupancy, wgmma, narrow: bytes a thread of each streamed pointer that is read narrower than 16,
problems), ok (no problems).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from microturn.bench import rows
from microturn.bench.rows import OURS, Row
from microturn.bench.subjects import Item, case_of, get
from microturn.kernels.registry import OPS, Op

SUITE = "compile"
NOTE = "compiled for sm_90, not run"


def row(item: Item) -> Row:
    """One case's launches."""
    from microturn.kernels.compiled import inspect
    from microturn.kernels.gate import launches_of, narrow_streams, problems_of

    subject = get(item.op)
    try:
        launches = launches_of(cast(Op, subject), case_of(subject, item.case), item.dtype)
    except Exception as error:  # whatever the compiler or a launcher says: it is the result
        text = f"{type(error).__name__}: {error}"
        return rows.null(item, OURS, f"does not compile: {text[-400:]}", False)
    excused = {name: why for op in OPS.values() for name, why in op.narrow_loads.items()}
    kernels: dict[str, dict[str, Any]] = {}
    for launch in launches:
        if launch.compiled.hash in kernels:
            continue
        b = inspect(launch)
        kernels[launch.compiled.hash] = {
            "kernel": b.name,
            "grid": list(launch.grid),
            "registers": b.registers,
            "spilled": b.spilled,
            "shared": b.shared,
            "threads": b.threads,
            "blocks_per_sm": b.blocks_per_sm,
            "occupancy": b.occupancy,
            "wgmma": b.wgmma,
            "narrow": narrow_streams(launch),
            "problems": list(problems_of(launch, b, excused)),
        }
    found = list(kernels.values())
    ok = not any(kernel["problems"] for kernel in found)
    made = rows.null(item, OURS, NOTE, ok)
    return made | {"launches": len(launches), "kernels": found}


def document(found: Iterable[Row]) -> dict[str, Any]:
    """Rows of `row` as a document."""
    import torch

    from microturn.bench import predict, schema
    from microturn.runtime import machine

    meta = {
        "device": predict.DEVICE,
        "torch": torch.__version__,
        "triton": machine.version("triton"),
        "git": machine.git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return schema.document(SUITE, meta, list(found))


def lines(found: Sequence[Row]) -> list[dict[str, str]]:
    """Cells of the table: a line for each binary not yet shown."""
    shown: set[tuple[object, ...]] = set()
    made = []
    for row in found:
        what = f"{row['op']} {row['case']} {row['dtype']}"
        for kernel in row.get("kernels", ()):
            key = tuple(str(kernel[k]) for k in kernel if k != "grid")
            if key in shown:
                continue
            shown.add(key)
            made.append(
                {
                    "what": what,
                    "kernel": kernel["kernel"],
                    "launches": str(row["launches"]),
                    "grid": "x".join(str(n) for n in kernel["grid"]),
                    "registers": str(kernel["registers"]),
                    "shared": f"{kernel['shared'] / 1024:.0f}",
                    "occupancy": f"{100 * kernel['occupancy']:.0f} %",
                    "blocks": str(kernel["blocks_per_sm"]),
                    "wgmma": "yes" if kernel["wgmma"] else "",
                    "narrow": ", ".join(f"{p} {n}" for p, n in kernel["narrow"].items()),
                    "problems": "; ".join(kernel["problems"]),
                }
            )
            what = ""
        if "kernels" not in row:
            made.append({"what": what, "problems": row["note"]})
    return made


COLUMNS = {
    "what": "op, case, dtype",
    "kernel": "kernel",
    "problems": "problems",
    "launches": "launches",
    "grid": "grid",
    "registers": "registers",
    "shared": "shared KB",
    "occupancy": "occupancy",
    "blocks": "blocks/SM",
    "wgmma": "wgmma",
    "narrow": "narrow loads",
}
