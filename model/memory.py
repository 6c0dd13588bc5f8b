"""How much memory a model may still take."""

from __future__ import annotations

from pathlib import Path


def free_bytes() -> int:
    """What the kernel says it can give without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) * 1024
