"""The `loading` suite: a random checkpoint in the released Inkling layout, made on the spot and
loaded by a process of its own.

Rows add to schema 1: file_bytes, model_bytes (parameters as they are held), peak_bytes (the most
the process ever had resident, its libraries included: VmHWM), over_bytes (peak_bytes less
model_bytes; the bar is 1 GB), gb_per_s of the file. The us_ fields are the one load. The run is
checked: values of slices spread over the files are compared with the model's.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microturn.bench import schema
from microturn.bench.machine import meta

BAR_BYTES = 1_000_000_000
SHARD_BYTES = 1_000_000_000
FREE_BYTES = 2_000_000_000
"""What must stay free of memory beside the model."""


class LoadingFailed(RuntimeError):
    """The process that loads did not end well, or what it loaded is wrong."""


def config_of(nbytes: int) -> Any:
    """Sizes of a trunk whose bf16 file is about `nbytes`: the architecture of the release, four
    layers, as many experts as it takes. From a small base of about 100 MB.
    """
    import torch

    from microturn.model.inkling.release import Inkling
    from microturn.model.inkling.release_config import ReleaseConfig
    from microturn.model.interaction import preset

    def made(experts: int) -> tuple[ReleaseConfig, int]:
        trunk = dataclasses.replace(
            preset("interaction-small").trunk,
            hidden_size=1024,
            num_layers=4,
            global_layers=(3,),
            num_heads=8,
            num_kv_heads=2,
            local_num_heads=8,
            local_num_kv_heads=2,
            num_dense_layers=1,
            dense_width=4096,
            num_experts=experts,
            expert_width=1024,
            vocab_size=8192,
            unpadded_vocab_size=8000,
        )
        config = ReleaseConfig(trunk)
        with torch.device("meta"):
            parts = Inkling.empty(config).parts()
        return config, 2 * sum(
            tensor.numel() for _, part, _ in parts for tensor in part.state_dict().values()
        )

    least = preset("interaction-small").trunk.top_k
    base, one_more = made(least)[1], made(least + 1)[1]
    return made(least + max(0, round((nbytes - base) / (one_more - base))))[0]


def make(folder: Path, nbytes: int, progress: Callable[[int, int], None] | None = None) -> int:
    """Writes a random release of about `nbytes` into `folder`; a slice is held at a time. Returns
    the bytes of its tensors.
    """
    import torch

    from microturn.model.checkpoint import Item, write_checkpoint
    from microturn.model.inkling.release import Inkling
    from microturn.model.inkling.release_config import NAME

    config = config_of(nbytes)
    with torch.device("meta"):
        parts = Inkling.empty(config).parts()
    generator = torch.Generator().manual_seed(0)

    def rows(shape: tuple[int, ...]) -> Callable[[int, int], torch.Tensor]:
        scale = shape[-1] ** -0.5
        return lambda start, stop: torch.randn(stop - start, *shape[1:], generator=generator).mul_(
            scale
        )

    items = [
        Item(
            prefix + entry.name,
            torch.float32 if entry.kind == "scalar" else torch.bfloat16,
            entry.shape,
            rows(entry.shape),
        )
        for prefix, _, table in parts
        for entry in table
    ]
    write_checkpoint(folder, items, shard_bytes=SHARD_BYTES, progress=progress)
    (folder / NAME).write_text(json.dumps(config.to_dict()))
    return sum(item.nbytes for item in items)


def load_and_report(folder: Path, dtype: str) -> dict[str, Any]:
    """What the process that loads finds out about itself."""
    import torch

    from microturn.model.checkpoint import Checkpoint
    from microturn.model.inkling.names import place
    from microturn.model.inkling.release import load_release

    libraries = _resident("VmRSS")
    began = time.perf_counter()
    model = load_release(folder, dtype=dtype)
    seconds = time.perf_counter() - began
    peak = _resident("VmHWM")
    worst = 0.0
    files = Checkpoint(folder)
    for prefix, part, table in model.parts():
        for entry in table:
            there = files.rows(prefix + entry.name, -1).float().flatten()
            here = place(part, entry)[-1:].float().flatten()
            worst = max(worst, float((here - there).abs().max() / there.abs().max()))
    held = [t for _, part, _ in model.parts() for t in part.state_dict().values()]
    return {
        "libraries_bytes": libraries,
        "seconds": seconds,
        "peak_bytes": peak,
        "model_bytes": sum(t.numel() * t.element_size() for t in held),
        "worst": worst,
        "torch_threads": torch.get_num_threads(),
    }


def measure(folder: Path, dtype: str, file_bytes: int) -> dict[str, Any]:
    """Loads `folder` in a fresh process: the row. Raises LoadingFailed."""
    command = [sys.executable, "-m", "microturn.bench.loading", str(folder), dtype]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise LoadingFailed(f"loading as {dtype} ended with {ran.returncode}: {ran.stderr[-500:]}")
    found = json.loads(ran.stdout.splitlines()[-1])
    allowed = {"fp32": 0.0, "bf16": 0.0, "fp8": 1 / 16}[dtype]
    if found["worst"] > allowed:
        raise LoadingFailed(f"loaded as {dtype}, a value is off by {found['worst']:.3g}")
    us = round(1e6 * found["seconds"], 1)
    over = found["peak_bytes"] - found["model_bytes"]
    return {
        "op": "loading",
        "case": f"preset=inkling,GB={file_bytes / 1e9:.2f},weights={dtype}",
        "dtype": "fp32",
        "provider": "microturn",
        **dict.fromkeys(schema.TIMES, us),
        "file_bytes": file_bytes,
        "model_bytes": found["model_bytes"],
        "peak_bytes": found["peak_bytes"],
        "libraries_bytes": found["libraries_bytes"],
        "over_bytes": over,
        "gb_per_s": round(file_bytes / 1e9 / found["seconds"], 3),
        "max_rel_err": found["worst"],
        "note": f"{'within' if over <= BAR_BYTES else 'BEYOND'} the model + 1 GB; the file was "
        "just written, so the page cache may hold it",
    }


def document(
    nbytes: int,
    dtypes: tuple[str, ...],
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Makes, measures and removes the checkpoint: a document of the `loading` suite.

    Raises MemoryError when model and file would not leave the machine room, LoadingFailed.
    """
    import torch

    from microturn.runtime import machine

    free = machine.memory_bytes()[1]
    if 2 * nbytes + FREE_BYTES > free:
        raise MemoryError(
            f"a model of {2 * nbytes / 1e9:.1f} GB in fp32 and 2 GB of room are wanted, "
            f"{free / 1e9:.1f} GB are free; make a smaller file"
        )
    before = meta(threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory(dir=folder) as made:
        file_bytes = make(Path(made), nbytes, progress)
        rows = [measure(Path(made), dtype, file_bytes) for dtype in dtypes]
    return schema.document("loading", before, rows)


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the most ever) of this process. Unlike ru_maxrss, the latter does not
    begin with what the parent had.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    print(json.dumps(load_and_report(Path(sys.argv[1]), sys.argv[2])))
