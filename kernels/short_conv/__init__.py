"""Depthwise causal convolution over the last few tokens, residual included."""

from microturn.kernels.short_conv.op import short_conv
from microturn.kernels.short_conv.reference import short_conv_spec

__all__ = ["short_conv", "short_conv_spec"]
