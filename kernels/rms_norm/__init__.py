"""RMSNorm, multiplied by its weight in fp32 before the one cast."""

from microturn.kernels.rms_norm.op import RMSNormWeights, rms_norm

__all__ = ["RMSNormWeights", "rms_norm"]
