"""What ends a sub-block: residual + short convolution, and the norm that begins the next."""

from microturn.kernels.conv_residual_norm.op import conv_residual_norm
from microturn.kernels.conv_residual_norm.reference import (
    ConvResidualNormWeights,
    Stream,
    SubBlock,
)

__all__ = ["ConvResidualNormWeights", "Stream", "SubBlock", "conv_residual_norm"]
