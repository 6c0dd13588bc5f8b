"""Dense matmul with row-independent bits."""

from microturn.kernels.linear.op import linear

__all__ = ["linear"]
