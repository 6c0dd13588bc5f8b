"""What an NVIDIA GPU says of itself: power, clocks, memory, and what holds it back. No torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("microturn.runtime.nvml")

REASONS = (
    "SwPowerCap",
    "HwSlowdown",
    "SwThermalSlowdown",
    "HwThermalSlowdown",
    "HwPowerBrakeSlowdown",
)
"""Why clocks are below what they could be, by the names of NVML."""


@dataclass(frozen=True)
class GpuSample:
    """One look at a GPU.

    power_w        drawn now
    sm_mhz, memory_mhz  clocks now
    used_bytes     of its memory, by everybody
    held_back_by   names of REASONS that apply now
    """

    power_w: float
    sm_mhz: int
    memory_mhz: int
    used_bytes: int
    held_back_by: tuple[str, ...]


class GpuSensor:
    """Reads one GPU."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """nvml: the pynvml module, initialised."""
        self._nvml = nvml
        self._handle = handle

    def sample(self) -> GpuSample | None:
        """None where the driver does not answer."""
        nvml, handle = self._nvml, self._handle
        try:
            held = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
            return GpuSample(
                power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                sm_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                memory_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
                used_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).used,
                held_back_by=tuple(name for name in REASONS if held & _bit(nvml, name)),
            )
        except nvml.NVMLError as error:
            log.warning("the GPU's driver does not answer: %s", error)
            return None


def gpu_sensor(index: int = 0) -> GpuSensor | None:
    """The sensor of a GPU, None on a machine that has none or no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return GpuSensor(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        return None


def _bit(nvml: Any, name: str) -> int:
    """The reasons were renamed from throttle to event; old ones keep their names."""
    for form in (f"nvmlClocksEventReason{name}", f"nvmlClocksThrottleReason{name}"):
        if hasattr(nvml, form):
            return int(getattr(nvml, form))
    return 0
