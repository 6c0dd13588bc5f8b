"""Sizes of a Mimi codec (spec/moshi-mimi.md 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class MimiConfig:
    """The defaults are the released codec at 12.5 frames a second, run on 8 of its 32 books.

    sample_rate      Hz, mono
    n_filters        channels at the sample rate; they double with every level
    ratios           rate of each level over the one before, in the decoder's order
    kernel_size, last_kernel_size, residual_kernel_size
                     first and last convolution of both networks; inside the residual blocks
    compress         a residual block is 1 / compress as wide inside
    dim              width of latents and transformers
    resample_stride  latents between two frames: the transformers run at this multiple of the frame
                     rate
    num_layers, num_heads, ff_dim, rope_theta
                     of each of the two transformers
    context          latents a latent sees, itself included
    num_codebooks    Q; the first num_semantic are the semantic group, at least one is acoustic
    codebook_size, codebook_dim
                     rows and width of a book

    Raises ValueError on sizes that do not fit each other.
    """

    sample_rate: int = 24_000
    n_filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    last_kernel_size: int = 3
    residual_kernel_size: int = 3
    compress: int = 2
    dim: int = 512
    resample_stride: int = 2
    num_layers: int = 8
    num_heads: int = 8
    ff_dim: int = 2048
    context: int = 250
    rope_theta: float = 10_000.0
    num_codebooks: int = 8
    num_semantic: int = 1
    codebook_size: int = 2048
    codebook_dim: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(self.ratios))  # a list, when it comes from JSON
        for name in self.__dataclass_fields__:
            sizes = getattr(self, name)
            if any(size <= 0 for size in (sizes if name == "ratios" else (sizes,))):
                raise ValueError(f"{name} must be positive, got {sizes}")
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"num_heads must divide dim into even head widths, got {self.num_heads} heads for "
                f"{self.dim}"
            )
        if self.num_semantic >= self.num_codebooks:
            raise ValueError(
                f"num_codebooks must exceed num_semantic, got {self.num_codebooks} and "
                f"{self.num_semantic}"
            )
        if self.n_filters % self.compress:
            raise ValueError(
                f"compress must divide n_filters, got {self.compress} and {self.n_filters}"
            )

    @classmethod
    def released(cls) -> MimiConfig:
        """The codec of the `moshi` family, 12.5 frames a second."""
        return cls()

    @classmethod
    def interaction(cls) -> MimiConfig:
        """20 frames a second: the codec of the `interaction` family (spec/interaction.md 1)."""
        return cls(ratios=(6, 5, 5, 4), context=400)

    @classmethod
    def tiny(cls) -> MimiConfig:
        """The topology of `interaction` at a size that decodes in real time on one CPU core."""
        return cls(
            n_filters=16,
            ratios=(6, 5, 5, 4),
            compress=1,
            dim=256,
            num_layers=1,
            num_heads=4,
            ff_dim=512,
            context=40,
            num_codebooks=2,
            codebook_size=640,
            codebook_dim=128,
        )

    @property
    def hop(self) -> int:
        """Samples between two latents."""
        return prod(self.ratios)

    @property
    def frame_size(self) -> int:
        """Samples of one frame."""
        return self.hop * self.resample_stride

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.frame_size

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads
