"""The vision tower: patches of pixels to rows of the trunk."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microturn.kernels.checks import check_dtype, check_shape
from microturn.kernels.linear import linear
from microturn.kernels.tiles import WIDTH
from microturn.model.inkling.norm import RMSNorm

CHANNELS = 3
PADDING = -1
"""What a patch holds where the image has no pixel."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1], as CLIP was trained with."""


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision tower; the defaults are the released ones.

    widths          outputs of every layer but the last, whose width is the trunk's
    spatial_folds   pixels in y and in x that each layer joins; their product is the patch's edge
    temporal_folds  frames that each layer joins; their product is the frames of a patch

    Raises ValueError naming the field that does not fit.
    """

    widths: tuple[int, ...] = (128, 320, 4800)
    spatial_folds: tuple[int, ...] = (5, 2, 4, 1)
    temporal_folds: tuple[int, ...] = (1, 1, 1, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        layers = len(self.widths) + 1
        if any(width <= 0 or width % WIDTH for width in self.widths):
            raise ValueError(
                f"vision: widths must be positive multiples of {WIDTH}, so that a row's bits do "
                f"not depend on its batch; got {self.widths}"
            )
        for name in ("spatial_folds", "temporal_folds"):
            folds = getattr(self, name)
            if len(folds) != layers or any(fold < 1 for fold in folds):
                raise ValueError(
                    f"vision: {name} must be {layers} numbers of at least 1, one for each of "
                    f"widths and one for the last layer; got {folds}"
                )
        if self.eps <= 0:
            raise ValueError(f"vision: eps must be positive, got {self.eps}")

    @property
    def patch(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of a patch."""
        edge = prod(self.spatial_folds)
        return prod(self.temporal_folds), edge, edge, CHANNELS


class VisionTower(nn.Module):
    """A layer folds pixels into channels, then y = gelu(RMSNorm(linear @ x)); the last one only
    folds and multiplies; RMSNorm of that is the row. No attention, no biases, exact gelu
    (spec/inkling.md 1.5).

    linears[i] [out, in], columns in the order (t, dy, dx, channel), the channel fastest.
    """

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        widths = (*config.widths, hidden_size)
        inputs = (CHANNELS, *config.widths)
        folded = [
            t * s * s * c
            for t, s, c in zip(config.temporal_folds, config.spatial_folds, inputs, strict=True)
        ]
        self.linears = nn.ParameterList(
            nn.Parameter(torch.empty(n, k)) for n, k in zip(widths, folded, strict=True)
        )
        self.norms = nn.ModuleList(RMSNorm(width, config.eps) for width in config.widths)
        self.final_norm = RMSNorm(hidden_size, config.eps)
        mean, std = 255 * torch.tensor(MEAN), 255 * torch.tensor(STD)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", 1 / std, persistent=False)
        self.mean: Tensor
        self.scale: Tensor

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Every layer keeps unit variance."""
        with torch.no_grad():
            for weight in self.linears:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
        for norm in (*self.norms, self.final_norm):
            assert isinstance(norm, RMSNorm)
            norm.reset_parameters()

    def normalize(self, patches: Tensor) -> Tensor:
        """[..., 3] of any dtype, 0 to 255 or PADDING -> fp32, (x / 255 - MEAN) / STD."""
        return (patches.to(self.mean.dtype) - self.mean) * self.scale

    def forward(self, patches: Tensor) -> Tensor:
        """patches [N, frames, edge, edge, 3] int16, 0 to 255 or PADDING -> [N, H].

        A patch's bits depend on that patch alone. Raises ValueError on shapes, TypeError on dtypes.
        """
        check_shape("vision", "patches", patches, ("N", *self.config.patch))
        check_dtype("vision", "patches", patches, torch.int16)
        return self.embed(self.normalize(patches).to(self.linears[0].dtype))

    def embed(self, pixels: Tensor) -> Tensor:
        """pixels [N, frames, edge, edge, 3] fp32, normalised -> [N, H]."""
        x = pixels
        folds = zip(self.config.temporal_folds, self.config.spatial_folds, strict=True)
        for i, (t, s) in enumerate(folds):
            x = fold(x, t, s)
            grid, weight = x.shape[:-1], self.linears[i]
            x = x.reshape(-1, x.shape[-1])
            if padding := weight.shape[1] - x.shape[1]:  # of weights placed on a GPU
                x = F.pad(x, (0, padding))
            x = linear(x, weight)
            if i < len(self.norms):
                # A patch is whole vectors of any CPU here, so its gelu has no tail of its own.
                x = F.gelu(self.norms[i](x)).view(*grid, -1)
        return self.final_norm(x)  # type: ignore[no-any-return]


def fold(x: Tensor, t: int, s: int) -> Tensor:
    """Joins t frames of s by s cells: [N, T, Y, X, C] -> [N, T / t, Y / s, X / s, t * s * s * C],
    the channel fastest, then x, then y, then the frame.
    """
    if t == s == 1:
        return x
    n, frames, height, width, channels = x.shape
    cells = x.reshape(n, frames // t, t, height // s, s, width // s, s, channels)
    cells = cells.permute(0, 1, 3, 5, 2, 4, 6, 7)
    return cells.reshape(n, frames // t, height // s, width // s, t * s * s * channels)
