"""The small transformer over codebooks that turns a hidden state and a text id into one frame."""

from microturn.kernels.depth_head.op import DepthInputs, DepthOutputs, DepthWeights, depth_head

__all__ = ["DepthInputs", "DepthOutputs", "DepthWeights", "depth_head"]
