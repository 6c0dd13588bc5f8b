"""Which experts a row goes to, and with what weight."""

from microturn.kernels.router.op import RouterWeights, Routing, router

__all__ = ["RouterWeights", "Routing", "router"]
