"""What stands between the fused projection of q, k, v and r and attention."""

from microturn.kernels.qkvr_prologue.op import qkvr_prologue
from microturn.kernels.qkvr_prologue.reference import QKVRState, QKVRWeights

__all__ = ["QKVRState", "QKVRWeights", "qkvr_prologue"]
