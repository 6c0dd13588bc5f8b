"""The residual block of SEANet: two convolutions and their ELUs beside the identity."""

from microturn.kernels.residual_unit.op import ResidualUnitWeights, residual_unit

__all__ = ["ResidualUnitWeights", "residual_unit"]
