"""dMel: a 50 ms hop of audio as 80 small integers."""

from microturn.kernels.dmel.op import DMelWeights, dmel, dmel_spec, dmel_weights

__all__ = ["DMelWeights", "dmel", "dmel_spec", "dmel_weights"]
