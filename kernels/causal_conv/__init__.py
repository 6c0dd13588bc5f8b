"""Causal convolution over packed rows, with an ELU before it and its last inputs carried over."""

from microturn.kernels.causal_conv.op import ConvWeights, causal_conv

__all__ = ["ConvWeights", "causal_conv"]
