"""Latents to the codes of a split residual quantiser."""

from microturn.kernels.rvq_quantize.op import QuantizeWeights, rvq_quantize

__all__ = ["QuantizeWeights", "rvq_quantize"]
