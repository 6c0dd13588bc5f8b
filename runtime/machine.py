"""Facts about the machine: what `microturn doctor` explains and every result file states."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """One CUDA device as torch sees it."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


def cpu_model() -> str:
    """The processor's own name, or its architecture where the kernel does not give one."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def usable_cores() -> int:
    """Cores this process may run on: its affinity, cut by the control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def memory_bytes() -> tuple[int, int]:
    """(total, available) for this process: the machine's, cut by the control group's limit."""
    fields = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    total, available = fields["MemTotal"], fields.get("MemAvailable", fields["MemFree"])
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, max(0, limit - used))


def rss_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def gpus() -> tuple[Gpu, ...]:
    """The CUDA devices torch can use; empty where there is none or torch was built without."""
    import torch

    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(Gpu(device.name, (device.major, device.minor), device.total_memory))
    return tuple(found)


def version(distribution: str) -> str | None:
    """The installed version of a distribution, None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The checkout's commit, with "-dirty" when tracked files differ; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: str = "cpu") -> str:
    """The name results of this device are filed under: the GPU's, or the CPU's with its cores."""
    if device.startswith("cuda") and (found := gpus()):
        return found[0].name
    cores = usable_cores()
    return f"{cpu_model()} {cores} core{'s' if cores != 1 else ''}"


def slug(name: str) -> str:
    """A device name as a folder name: "AMD EPYC 2 cores" -> "AMD_EPYC_2_cores"."""
    plain = re.sub(r"\((R|TM|C)\)|@.*?(?=\d+ cores?$)|\bCPU\b", " ", name)
    return re.sub(r"[^A-Za-z0-9.-]+", "_", plain).strip("_")
