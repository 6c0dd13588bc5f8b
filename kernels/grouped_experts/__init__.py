"""The mixture of experts: rows through the experts they were routed to, and combined."""

from microturn.kernels.grouped_experts.layout import ExpertLayout, regime
from microturn.kernels.grouped_experts.op import (
    ExpertInputs,
    ExpertWeights,
    grouped_experts,
    swiglu,
)

__all__ = ["ExpertInputs", "ExpertLayout", "ExpertWeights", "grouped_experts", "regime", "swiglu"]
