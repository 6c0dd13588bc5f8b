"""Seeded random inputs for cases, on any device; on "meta" only their shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from microturn.kernels.quantized import BLOCK, Quantized, Weight, quantize

FP8 = torch.float8_e4m3fn


class Draw:
    """Gaussian tensors from one seed.

    dtype  of activations; FP8 draws bf16 activations and 8-bit weights (W8A16). None: fp32
    device where they live. A CPU and a GPU draw different numbers from one seed
    """

    def __init__(
        self, seed: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.fp8 = dtype == FP8
        self.dtype = torch.bfloat16 if self.fp8 else dtype or torch.float32
        self.meta = self.device.type == "meta"
        where = "cpu" if self.meta else self.device
        self.generator = torch.Generator(where).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """scale * N(0, 1), rounded once."""
        dtype = dtype or self.dtype
        if self.meta:
            return torch.empty(shape, dtype=dtype, device="meta")
        drawn = torch.randn(shape, generator=self.generator, device=self.device)
        return (scale * drawn).to(dtype)

    def uniform(self, *shape: int) -> Tensor:
        """fp32 in [0, 1)."""
        if self.meta:
            return torch.empty(shape, device="meta")
        return torch.rand(shape, generator=self.generator, device=self.device)

    def integers(
        self, low: int, high: int, shape: Sequence[int], dtype: torch.dtype = torch.int64
    ) -> Tensor:
        """Each of low to high - 1 equally often."""
        if self.meta:
            return torch.empty(tuple(shape), dtype=dtype, device="meta")
        drawn = torch.randint(low, high, tuple(shape), generator=self.generator, device=self.device)
        return drawn.to(dtype)

    def weight(self, *shape: int, scale: float = 1.0) -> Weight:
        """A matrix [..., N, K] that an op streams: 8 bits where the draw is FP8."""
        if not self.fp8:
            return self.normal(*shape, scale=scale)
        if self.meta or 0 in shape:
            scales = (*shape[:-1], -(-shape[-1] // BLOCK))
            return Quantized(
                torch.empty(shape, dtype=FP8, device=self.device),
                torch.empty(scales, dtype=torch.float8_e8m0fnu, device=self.device),
            )
        flat = [quantize(self.normal(*shape[-2:], scale=scale)) for _ in range(_count(shape[:-2]))]
        values = torch.stack([q.values for q in flat]).view(shape)
        return Quantized(values, torch.stack([q.scales for q in flat]).view(*shape[:-1], -1))


def _count(shape: Sequence[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
