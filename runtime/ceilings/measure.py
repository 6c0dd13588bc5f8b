"""Three numbers: the fastest read, the fastest copy, the fastest large matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from microturn.runtime.timing import Timer

GPU_BYTES = 1 << 31
CPU_BYTES = 1 << 26
GPU_MATMUL = 8192
CPU_MATMUL = 512


@dataclass(frozen=True)
class Ceilings:
    """read_gbps, copy_gbps (read and written), tflops of a matrix product in `dtype`."""

    read_gbps: float
    copy_gbps: float
    tflops: float
    dtype: str

    def floor_us(self, nbytes: int, flops: int) -> float:
        """No call that moves these bytes and does this arithmetic is faster."""
        return max(nbytes / self.read_gbps / 1e3, flops / self.tflops / 1e6)

    def as_meta(self) -> dict[str, float]:
        """As in DESIGN 6."""
        found = {"read_gbps": self.read_gbps, "copy_gbps": self.copy_gbps}
        return found | {f"{self.dtype}_tflops": self.tflops}

    def as_json(self) -> dict[str, float | str]:
        return asdict(self)


def measure(timer: Timer) -> Ceilings:
    """Best median of every way to read and copy that is tried here."""
    on_gpu = timer.device.type == "cuda"
    nbytes, n = (GPU_BYTES, GPU_MATMUL) if on_gpu else (CPU_BYTES, CPU_MATMUL)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    with torch.inference_mode():
        source = torch.randint(-(1 << 31), 1 << 31, (nbytes // 4,), device=timer.device)
        source = source.to(torch.int32)
        read_us = min(timer.time([call]).p50 for call in _reads(source))
        target = torch.empty_like(source)
        copy_us = timer.time([lambda: target.copy_(source)]).p50
        a, b = (torch.randn(n, n, device=timer.device).to(dtype) for _ in range(2))
        c = torch.empty_like(a)
        matmul_us = timer.time([lambda: torch.mm(a, b, out=c)]).p50
    return Ceilings(
        read_gbps=round(nbytes / read_us / 1e3, 1),
        copy_gbps=round(2 * nbytes / copy_us / 1e3, 1),
        tflops=round(2 * n**3 / matmul_us / 1e6, 3),
        dtype="bf16" if on_gpu else "fp32",
    )


def _reads(source: torch.Tensor) -> Iterator[Callable[[], object]]:
    floats = source.view(torch.float32)
    yield lambda: torch.sum(source, dtype=torch.int32)
    yield lambda: torch.amax(floats)
    if source.device.type != "cuda":
        return
    from microturn.runtime.ceilings.kernel import read_all

    sms = torch.cuda.get_device_properties(source.device).multi_processor_count
    for per_sm, block, stages, warps in ((8, 4096, 1, 4), (4, 8192, 1, 8), (3, 8192, 3, 4)):
        out = torch.empty(per_sm * sms, dtype=torch.int32, device=source.device)

        def read(
            out: torch.Tensor = out, block: int = block, stages: int = stages, warps: int = warps
        ) -> None:
            read_all[(out.numel(),)](
                source, out, SIZE=source.numel(), BLOCK=block, STAGES=stages, num_warps=warps
            )

        yield read
