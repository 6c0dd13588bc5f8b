"""The meta part of a result: on what, with what, when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from microturn.runtime import machine
from microturn.runtime.versions import versions


def meta(device: str = "cpu", *, threads: int) -> dict[str, Any]:
    """Fields of DESIGN 6 that hold for every suite; driver only where there is a GPU.

    threads: torch threads of what is measured.
    """
    import torch

    name = machine.device_name(device)
    found: dict[str, Any] = {
        "device": name,
        "device_slug": machine.slug(name),
        "cpu": machine.cpu_model(),
        "cores": machine.usable_cores(),
        "threads": threads,
        "memory_gb": round(machine.memory_bytes()[0] / 1e9, 1),
        **versions(),
        "triton": machine.version("triton"),
        "torch": torch.__version__,
        "git": machine.git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device.startswith("cuda"):
        found["driver"] = _driver()
    return found


def _driver() -> str:
    import pynvml

    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
