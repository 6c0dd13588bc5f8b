"""What NVIDIA's datasheets say of its GPUs. Nothing here was measured."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """memory_gb (10^9 bytes) and read_gbps of its memory; tflops: dense bf16 products that add up
    in fp32, which weights of eight bits are multiplied with too; link_gbps: to its neighbours, one
    way (NVLink, else PCIe); source: the document.
    """

    name: str
    memory_gb: float
    read_gbps: float
    tflops: float
    link_gbps: float
    source: str


_DATASHEET = "NVIDIA {} datasheet"

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("B200", 180, 8000, 2250, 900, "NVIDIA DGX B200 datasheet, an eighth of it"),
        Gpu("H200", 141, 4800, 989, 450, _DATASHEET.format("H200 SXM")),
        Gpu("H100", 80, 3350, 989, 450, _DATASHEET.format("H100 SXM")),
        Gpu("A100", 80, 2039, 312, 300, _DATASHEET.format("A100 80GB SXM")),
        Gpu("L40S", 48, 864, 362, 32, _DATASHEET.format("L40S")),
        Gpu("5090", 32, 1792, 209.5, 64, "NVIDIA RTX Blackwell architecture paper"),
        Gpu("4090", 24, 1008, 165.2, 32, "NVIDIA Ada architecture paper"),
    )
}


def gpu(name: str) -> Gpu:
    """By its name without regard to case. Raises ValueError naming the known ones."""
    for known, found in GPUS.items():
        if known.lower() == name.strip().lower():
            return found
    raise ValueError(f"unknown GPU {name!r}; known: {', '.join(GPUS)}")
