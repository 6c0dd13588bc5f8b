"""Codes of a split residual quantiser to latents."""

from microturn.kernels.rvq_dequantize.op import DequantizeWeights, rvq_dequantize

__all__ = ["DequantizeWeights", "rvq_dequantize"]
