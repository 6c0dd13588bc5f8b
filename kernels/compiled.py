"""Kernels compiled for Hopper on a machine without a GPU, and what the binaries say.

An op is called on "meta" tensors of the real sizes: its launcher runs as it would on a GPU (so it
cannot read a value off the device), and every launch is compiled instead of run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microturn.kernels.launch import Launch, recording

SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory one block may have on sm_90."""
SHARED_PER_SM = 228 * 1024
REGISTERS_PER_SM = 65_536
THREADS_PER_SM = 2048
BLOCKS_PER_SM = 32


class _Hopper:
    """Stands in for Triton's driver: a target to compile for, nothing to launch on."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling() -> Iterator[list[Launch]]:
    """Inside, ops on "meta" tensors compile for sm_90; the list holds their launches, in order.

    Raises RuntimeError when the process runs Triton's interpreter, which compiles nothing.
    """
    import triton
    from triton.runtime import driver

    if triton.knobs.runtime.interpret:
        raise RuntimeError(
            "unset TRITON_INTERPRET to compile kernels: interpreted ones have no binary"
        )
    before = driver._active  # its own reset looks for a GPU
    driver.set_active(_Hopper())
    try:
        with recording() as launches:
            yield launches
    finally:
        driver._active = before


@dataclass(frozen=True)
class Binary:
    """One compiled kernel.

    registers a thread; spilled bytes a thread; shared bytes a block; threads a block; instructions:
    how often each of the telling ones stands in the machine code
    """

    name: str
    registers: int
    spilled: int
    shared: int
    threads: int
    instructions: dict[str, int]

    @property
    def blocks_per_sm(self) -> int:
        """Blocks of this kernel that one multiprocessor of sm_90 holds at once."""
        registers = -(-self.registers // 8) * 8 * self.threads
        return min(
            BLOCKS_PER_SM,
            THREADS_PER_SM // self.threads,
            REGISTERS_PER_SM // registers,
            SHARED_PER_SM // (self.shared + 1024),
        )

    @property
    def occupancy(self) -> float:
        """Threads resident over threads possible."""
        return self.blocks_per_sm * self.threads / THREADS_PER_SM

    @property
    def wgmma(self) -> bool:
        """Whether the warpgroup matrix instructions are used."""
        return any(name.startswith(("HGMMA", "QGMMA")) for name in self.instructions)


_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_TELLING = re.compile(
    r"\b((?:HGMMA|QGMMA|HMMA|QMMA|LDGSTS|LDG|UTMALDG|UBLKCP|LDL|STL|ACQBULK|PREEXIT)\b[.\w]*)"
)


def inspect(launch: Launch) -> Binary:
    """What Triton's own cuobjdump and nvdisasm say of a compiled launch."""
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    metadata = launch.compiled.metadata
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launch.compiled.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    found = _RESOURCES.search(usage)
    if found is None:
        raise RuntimeError(f"cuobjdump gave no resource usage of {launch.name}: {usage}")
    registers, stack, _, local = map(int, found.groups())
    counts: dict[str, int] = {}
    for name in _TELLING.findall(code):
        counts[name] = counts.get(name, 0) + 1
    return Binary(
        launch.name, registers, stack + local, metadata.shared, 32 * metadata.num_warps, counts
    )


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
