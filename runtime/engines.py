"""The engine of a configuration: which device, how its weights are stored, how many slots fit."""

from __future__ import annotations

from microturn.model.family import ModelFamily
from microturn.runtime import machine
from microturn.runtime.admission import slots_within
from microturn.runtime.config import RuntimeConfig
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.engine import Engine
from microturn.runtime.errors import ConfigError

WEIGHTS = {
    "cpu": {"auto": "fp32", "float32": "fp32"},
    "cuda": {"auto": "bf16", "bfloat16": "bf16", "fp8": "fp8"},
}
"""By device and dtype, the width in which weights are stored."""

RESERVE = 1 << 30
"""Bytes of a GPU left for graphs and what a tick makes on its way."""


def make_engine(family: ModelFamily, config: RuntimeConfig) -> Engine:
    """The family's weights move to the device. Raises ConfigError where there is no such device or
    it does not compute so, and what `slots_within` does.
    """
    weights = WEIGHTS[config.device].get(config.dtype)
    if weights is None:
        known = ", ".join(WEIGHTS[config.device])
        raise ConfigError(f"device={config.device!r} computes in {known}, got {config.dtype!r}")
    if config.device == "cpu":
        slots = _slots(family, config, machine.memory_bytes()[1])
        return CpuEngine(family, slots, config.threads)
    check_cuda()
    import torch

    from microturn.runtime.gpu_engine import GpuEngine
    from microturn.runtime.graphs import CudaMachine

    gpu = CudaMachine()
    with torch.inference_mode():
        family.to(gpu.device, weights)
    free = torch.cuda.mem_get_info(gpu.device)[0] - RESERVE
    return GpuEngine(family, _slots(family, config, free), gpu)


def _slots(family: ModelFamily, config: RuntimeConfig, free: int) -> int:
    each = sum(spec.bytes_per_slot for spec in family.arena_specs())
    return slots_within(config.max_sessions, each, config.byte_budget, free)


def check_cuda() -> None:
    """Raises ConfigError saying what is missing for device="cuda"."""
    import torch

    hint = "use device='cpu', or see `microturn doctor`"
    if not torch.cuda.is_available():
        raise ConfigError(f"device='cuda' needs an NVIDIA GPU, torch finds none; {hint}")
    try:
        import triton  # noqa: F401
    except ImportError:
        raise ConfigError(f"device='cuda' needs Triton, which is not installed; {hint}") from None
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        raise ConfigError(
            f"device='cuda' needs compute capability 8.0 or later, {torch.cuda.get_device_name()} "
            f"has {major}.{minor}; {hint}"
        )
