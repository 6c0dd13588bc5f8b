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
    head_dim = x.shape[-1]
    if head_dim % 2:
        raise ValueError(f"rope turns pairs, got a head dimension of {head_dim}")
    steps = torch.arange(0, head_dim, 2, dtype=torch.float64, device=x.device)
    angles = positions[..., None, None] * theta ** (-steps / head_dim)
    wide = x if x.dtype == torch.float64 else x.float()
    cos, sin = angles.cos().to(wide.dtype), angles.sin().to(wide.dtype)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).to(x.dtype)
