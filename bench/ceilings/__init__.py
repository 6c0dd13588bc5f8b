"""What the machine can do, measured in the run it is compared with."""

from microturn.bench.ceilings.measure import Ceilings, measure

__all__ = ["Ceilings", "measure"]
