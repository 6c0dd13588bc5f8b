"""Transposed convolution over packed rows, with an ELU before it and its overlap-add tail carried
over.
"""

from microturn.kernels.conv_transpose.op import ConvTransposeWeights, conv_transpose

__all__ = ["ConvTransposeWeights", "conv_transpose"]
