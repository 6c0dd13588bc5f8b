"""Rotary position embedding, a row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """(x[2i], x[2i + 1]) turned by the angle position * theta ** (-2i / D), in fp32, cast once.

    x         [..., T, H, D], D even
    positions [..., T] int64, absolute

    Angles are formed in fp64, so that late positions turn as exactly as early ones. Source:
    spec/moshi-mimi.md 3.1 (interleaved pairs). Raises ValueError on an odd D.
    """
    return rotate(x, *rotation(positions, x.shape[-1], theta, wide(x.dtype)))


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a tensor of `dtype` is turned in."""
    return dtype if dtype == torch.float64 else torch.float32


def rotation(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [..., 1, D / 2] of the angles of positions [...]. Raises ValueError: D is odd."""
    if head_dim % 2:
        raise ValueError(f"rope turns pairs, got a head dimension of {head_dim}")
    steps = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None, None] * theta ** (-steps / head_dim)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., H, D] by what `rotation` gives."""
    dtype = x.dtype
    if dtype != cos.dtype:
        x = x.to(cos.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
    return turned if turned.dtype == dtype else turned.to(dtype)
