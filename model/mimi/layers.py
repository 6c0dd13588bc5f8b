"""Modules that hold the weights of the codec's ops as the ops want them, and name their state.

Fresh parameters are uninitialised: load them, or call `reset_parameters` of the codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from microturn.kernels.arena import ArenaSpec, Ring, Twice
from microturn.kernels.causal_conv import ConvWeights, causal_conv
from microturn.kernels.codec_transformer import (
    CodecLayerWeights,
    CodecTransformerWeights,
    codec_transformer,
)
from microturn.kernels.conv_transpose import ConvTransposeWeights, conv_transpose
from microturn.kernels.kept import stamp
from microturn.kernels.residual_unit import ResidualUnitWeights, residual_unit
from microturn.kernels.rows import RowBatch
from microturn.kernels.streaming_attention import KVState, kv_specs
from microturn.model.family import ArenaSet
from microturn.model.mimi.config import MimiConfig

W = TypeVar("W")

CURSOR = "frames"
"""The counter that positions the codec's state."""

ELU_GAIN = 1.245
"""1 / rms(ELU(z)) for z of unit variance: keeps it from layer to layer."""


def tail_spec(name: str, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> ArenaSpec:
    """The arena of a tail that is rewritten every tick.

    dtype: of inputs kept for later (one pointer reads both); sums not finished stay in fp32.
    """
    return ArenaSpec(name, "twice", shape, 1, CURSOR, dtype)


def tail_view(arenas: ArenaSet, name: str) -> Twice:
    view = arenas.view(name)
    assert isinstance(view, Twice), f"{name} must be a Twice arena"
    return view


Key = tuple[object, ...]


class Kept(nn.Module, Generic[W]):
    """Parameters whose weights object is one until a parameter changes: what an op lays out of it
    serves every tick.

    Tensors made under inference_mode do not count their changes: load those before use.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Key, W] | None = None

    @property
    def weights(self) -> W:
        """What the op takes; made anew at each call under autograd."""
        if torch.is_grad_enabled():
            return self.assemble()
        key: Key = (
            *self.options(),
            *[stamp(p) for p in self._parameters.values() if p is not None],
        )
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self.assemble()
        return self._kept[1]

    def assemble(self) -> W:
        raise NotImplementedError

    def options(self) -> Key:
        """What else the object is made of."""
        return ()


class Conv(Kept[ConvWeights]):
    """causal_conv: weight [Cout, K, Cin], bias [Cout] or None."""

    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        *,
        stride: int = 1,
        pad: Literal["zero", "replicate"] = "zero",
        elu: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.elu = stride, elu
        self.pad: Literal["zero", "replicate"] = pad
        self.weight = nn.Parameter(torch.empty(width, kernel, channels))
        self.register_parameter("bias", nn.Parameter(torch.empty(width)) if bias else None)

    def reset_parameters(self, generator: torch.Generator, gain: float = 1.0) -> None:
        """An output as large as `gain` times its input (times ELU's loss), no bias."""
        _, kernel, channels = self.weight.shape
        std = gain * (ELU_GAIN if self.elu else 1.0) / (kernel * channels) ** 0.5
        with torch.no_grad():
            self.weight.normal_(0, std, generator=generator)
            if self.bias is not None:
                self.bias.zero_()

    def assemble(self) -> ConvWeights:
        return ConvWeights(self.weight, self.bias, self.stride, self.pad, self.elu)

    def options(self) -> Key:
        return self.stride, self.pad, self.elu

    def arena_specs(self, name: str, dtype: torch.dtype | None = None) -> Sequence[ArenaSpec]:
        """dtype: of the inputs, that of the weight where they are no audio."""
        return (tail_spec(name, self.weights.tail_shape, dtype or self.weight.dtype),)

    def forward(
        self, x: Tensor, state: Twice | None, rows: RowBatch, out: Tensor | None = None
    ) -> Tensor:
        weights = self.weights
        return causal_conv(x, weights, state if weights.history else None, rows, out=out)


class ConvTranspose(Kept[ConvTransposeWeights]):
    """conv_transpose with a kernel of two strides: weight [K, Cout, Cin] ([K, C] depthwise), bias
    [Cout] or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        *,
        depthwise: bool = False,
        elu: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.elu = stride, elu
        shape = (2 * stride, channels) if depthwise else (2 * stride, width, channels)
        self.weight = nn.Parameter(torch.empty(*shape))
        self.register_parameter("bias", nn.Parameter(torch.empty(width)) if bias else None)

    def reset_parameters(self, generator: torch.Generator, gain: float = 1.0) -> None:
        """As `Conv.reset_parameters`."""
        fan_in = 2 * (1 if self.weight.dim() == 2 else self.weight.shape[2])
        std = gain * (ELU_GAIN if self.elu else 1.0) / fan_in**0.5
        with torch.no_grad():
            self.weight.normal_(0, std, generator=generator)
            if self.bias is not None:
                self.bias.zero_()

    def assemble(self) -> ConvTransposeWeights:
        return ConvTransposeWeights(self.weight, self.bias, self.stride, self.elu)

    def options(self) -> Key:
        return self.stride, self.elu

    def arena_specs(self, name: str) -> Sequence[ArenaSpec]:
        return (tail_spec(name, self.weights.tail_shape),)

    def forward(self, x: Tensor, state: Twice | None, rows: RowBatch) -> Tensor:
        return conv_transpose(x, self.weights, state, rows)


class ResidualUnit(nn.Module):
    """residual_unit over `channels`, 1 / compress as wide inside."""

    def __init__(self, channels: int, config: MimiConfig) -> None:
        super().__init__()
        hidden = channels // config.compress
        self.inner = Conv(channels, hidden, config.residual_kernel_size, elu=True)
        self.outer = Conv(hidden, channels, 1, elu=True)
        self._whole: ResidualUnitWeights | None = None

    def reset_parameters(self, generator: torch.Generator) -> None:
        """A branch half as large as the identity."""
        self.inner.reset_parameters(generator)
        self.outer.reset_parameters(generator, 0.5)

    @property
    def weights(self) -> ResidualUnitWeights:
        inner, outer = self.inner.weights, self.outer.weights
        kept = self._whole
        if kept is None or kept.inner is not inner or kept.outer is not outer:
            kept = self._whole = ResidualUnitWeights(inner, outer)
        return kept

    def arena_specs(self, name: str) -> Sequence[ArenaSpec]:
        return (tail_spec(name, self.weights.tail_shape, self.inner.weight.dtype),)

    def forward(self, x: Tensor, state: Twice | None, rows: RowBatch) -> Tensor:
        weights = self.weights
        return residual_unit(x, weights, state if weights.inner.history else None, rows)


class TransformerLayer(Kept[CodecLayerWeights]):
    """The parameters of one `CodecLayerWeights`, under its names."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        dim, ff = config.dim, config.ff_dim
        self.norm1_gain = nn.Parameter(torch.empty(dim))
        self.norm1_bias = nn.Parameter(torch.empty(dim))
        self.in_proj = nn.Parameter(torch.empty(3 * dim, dim))
        self.out_proj = nn.Parameter(torch.empty(dim, dim))
        self.scale1 = nn.Parameter(torch.empty(dim))
        self.norm2_gain = nn.Parameter(torch.empty(dim))
        self.norm2_bias = nn.Parameter(torch.empty(dim))
        self.ff_in = nn.Parameter(torch.empty(ff, dim))
        self.ff_out = nn.Parameter(torch.empty(dim, ff))
        self.scale2 = nn.Parameter(torch.empty(dim))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Matrices that keep variance, layer scales of 0.01: nearly the identity."""
        with torch.no_grad():
            for matrix in (self.in_proj, self.out_proj, self.ff_in, self.ff_out):
                matrix.normal_(0, matrix.shape[1] ** -0.5, generator=generator)
            for gain in (self.norm1_gain, self.norm2_gain):
                gain.fill_(1.0)
            for bias in (self.norm1_bias, self.norm2_bias):
                bias.zero_()
            for scale in (self.scale1, self.scale2):
                scale.fill_(0.01)

    def assemble(self) -> CodecLayerWeights:
        return CodecLayerWeights(**self._parameters)  # type: ignore[arg-type]


class Transformer(nn.Module):
    """codec_transformer at the rate of the latents."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for layer in self._layers:
            layer.reset_parameters(generator)

    @property
    def _layers(self) -> list[TransformerLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def weights(self) -> CodecTransformerWeights:
        config = self.config
        return CodecTransformerWeights(
            tuple(layer.weights for layer in self._layers),
            num_heads=config.num_heads,
            window=config.context,
            rope_theta=config.rope_theta,
        )

    def arena_specs(self, name: str, max_frames: int) -> Sequence[ArenaSpec]:
        config = self.config
        return tuple(
            replace(spec, positions_per_cursor=config.resample_stride)
            for i in range(config.num_layers)
            for spec in kv_specs(
                f"{name}.{i}",
                kind="ring",
                window=config.context,
                max_rows_per_tick=max_frames * config.resample_stride,
                num_kv_heads=config.num_heads,
                head_dim=config.head_dim,
                cursor=CURSOR,
                dtype=self._layers[i].in_proj.dtype,
            )
        )

    def bind(self, arenas: ArenaSet, name: str) -> tuple[KVState, ...]:
        def ring(part: str) -> Ring:
            view = arenas.view(part)
            assert isinstance(view, Ring), f"{part} must be a Ring arena"
            return view

        return tuple(
            KVState(ring(f"{name}.{i}.k"), ring(f"{name}.{i}.v"))
            for i in range(self.config.num_layers)
        )

    def forward(self, x: Tensor, state: Sequence[KVState] | None, rows: RowBatch) -> Tensor:
        return codec_transformer(x, self.weights, state, rows)
