"""Streaming convolutions by torch and cuDNN: a tail in front of the new rows, channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.bench.providers.base import Call, Unavailable
from microturn.kernels.causal_conv import ConvWeights
from microturn.kernels.registry import Case, OpInputs

Step = Callable[[Tensor], Tensor]
"""Images [N, C, 1, L], channels last, to images."""


def _tails(inputs: OpInputs) -> Tensor:
    """What lines carry, [N, rows, C]: zeros where a line begins."""
    state, rows = inputs.state, inputs.rows
    slots = rows.line_slots
    tails: Tensor = state.data[state.parity[slots], slots].clone()
    if rows.fresh_lines is not None:
        tails[rows.fresh_lines] = 0
    return tails.to(inputs.x.dtype)


def _image(rows: Tensor) -> Tensor:
    """[N, L, C] -> [N, C, 1, L]: the same memory."""
    return rows.unsqueeze(1).permute(0, 3, 1, 2)


def _conv(weights: ConvWeights, tail: Tensor | None) -> Step:
    weight = weights.weight.permute(0, 2, 1).unsqueeze(2)
    weight = weight.contiguous(memory_format=torch.channels_last)
    kept = None if tail is None else _image(tail).contiguous(memory_format=torch.channels_last)

    def step(x: Tensor) -> Tensor:
        if weights.elu:
            x = F.elu(x)
        if kept is not None:
            x = torch.cat([kept, x], -1)
            kept.copy_(x[..., x.shape[-1] - kept.shape[-1] :])
        return F.conv2d(x, weight, weights.bias, stride=(1, weights.stride))

    return step


def _causal_conv(inputs: OpInputs) -> Step:
    weights = inputs.weights
    fresh = inputs.rows.fresh_lines
    if weights.pad == "replicate" and fresh is not None:
        tail = _tails(inputs)
        first = inputs.x.view(tail.shape[0], -1, inputs.x.shape[1])[:, :1]
        first = F.elu(first) if weights.elu else first
        return _conv(weights, torch.where(fresh[:, None, None], first, tail))
    return _conv(weights, _tails(inputs) if weights.history else None)


def _residual_unit(inputs: OpInputs) -> Step:
    inner = _conv(inputs.weights.inner, _tails(inputs))
    outer = _conv(inputs.weights.outer, None)
    return lambda x: x + outer(inner(x))


def _conv_transpose(inputs: OpInputs) -> Step:
    """The tail is kept as outputs still to be finished, without bias."""
    weights = inputs.weights
    stride, width, weight = weights.stride, weights.width, weights.weight
    depthwise = weight.dim() == 2
    groups = width if depthwise else 1
    kernel = weight.T[:, None] if depthwise else weight.permute(2, 1, 0)
    kernel = kernel.unsqueeze(2).contiguous()
    bias = None if weights.bias is None else weights.bias[None, :, None, None]
    kept = None
    if weights.overlap > 1:
        tails = _tails(inputs)
        kept = _image(tails.reshape(tails.shape[0], -1, width)).contiguous(
            memory_format=torch.channels_last
        )

    def step(x: Tensor) -> Tensor:
        if weights.elu:
            x = F.elu(x)
        y = F.conv_transpose2d(x, kernel, stride=(1, stride), groups=groups)
        if kept is not None:
            y[..., : kept.shape[-1]] += kept
            kept.copy_(y[..., x.shape[-1] * stride :])
        y = y[..., : x.shape[-1] * stride]
        return y if bias is None else y + bias

    return step


_OPS = {
    "causal_conv": _causal_conv,
    "residual_unit": _residual_unit,
    "conv_transpose": _conv_transpose,
}


class TorchConvs:
    name = "torch_convs"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return op in _OPS and dtype in ("fp32", "bf16") and bool(getattr(case, "S", 1))

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        """Raises Unavailable where lines differ in length."""
        x, rows = inputs.x, inputs.rows
        if rows.line_length is None:
            raise Unavailable("torch convolves a batch of lines of one length")
        weights = inputs.weights
        dtypes = weights.inner if op == "residual_unit" else weights
        x = x.to(dtypes.weight.dtype)
        lines = rows.num_lines
        step = _OPS[op](OpInputs(x, weights, inputs.state, rows))
        image = _image(x.view(lines, -1, x.shape[1]))

        def call() -> Any:
            y = step(image).permute(0, 2, 3, 1)
            return y.reshape(-1, y.shape[-1])

        return call


PROVIDERS = (TorchConvs(),)
