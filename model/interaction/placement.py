"""Weights on the device that steps them, in the width they are stored in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microturn.kernels.quantized import BLOCK, Quantized, quantize
from microturn.model.checkpoint.quantization import check_weight_dtype
from microturn.model.inkling.names import trunk_tensors
from microturn.model.interaction.model import InteractionModel

ALIGNED = 8
"""Values of 16 bits in 16 bytes: rows of a matrix that a kernel streams begin at multiples."""


def place(model: InteractionModel, device: torch.device | str, weights: str) -> None:
    """Moves the model in place, its weights as fp32, bf16 or fp8: a model that computes in fp32, or
    in bf16 from weights of 16 or 8 bits. fp8 stores the matrices of the trunk in eight bits, which
    every pass streams, and the rest in 16. Scalars and buffers stay as they are.

    One tensor after the other, so that little is held twice. Raises ValueError on other widths, and
    on matrices that are not finite where they are to be fp8.
    """
    check_weight_dtype(weights)
    kinds = {f"trunk.{e.parameter}": e.kind for e in trunk_tensors(model.config.trunk)}
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    for path, part in model.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)
        for name, parameter in list(part.named_parameters(recurse=False)):
            kind = kinds.get(f"{path}.{name}" if path else name, "plain")
            value = parameter.detach().to(device, parameter.dtype if kind == "scalar" else dtype)
            if path == "visual.linears" and weights != "fp32":
                value = F.pad(value, (0, -value.shape[1] % ALIGNED))
            delattr(part, name)
            if kind == "matrix" and weights == "fp8":
                setattr(part, name, eight_bits(value))
            else:
                setattr(part, name, nn.Parameter(value, requires_grad=False))


def eight_bit_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Values and scales of what `place` stored as fp8, which no state_dict holds, by name."""
    return {
        f"{path}.{name}.{part}": getattr(value, part)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Quantized)
        for part in ("values", "scales")
    }


def eight_bits(weight: Tensor) -> Quantized:
    """`quantize`, a matrix at a time: weight [..., N, K] of any size needs room for one in fp32."""
    scales = (*weight.shape[:-1], -(-weight.shape[-1] // BLOCK))
    made = Quantized(
        torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device),
        torch.empty(scales, dtype=torch.float8_e8m0fnu, device=weight.device),
    )
    if weight.is_meta:
        return made
    matrices = weight.reshape(-1, *weight.shape[-2:])
    values = made.values.view(torch.uint8).view(matrices.shape)
    kept = made.scales.view(torch.uint8).view(len(matrices), *scales[-2:])
    for i, matrix in enumerate(matrices):
        small = quantize(matrix)
        values[i] = small.values.view(torch.uint8)
        kept[i] = small.scales.view(torch.uint8)
    return made
