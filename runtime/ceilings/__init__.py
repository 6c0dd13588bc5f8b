"""What the machine can do, measured in the run it is compared with."""

from microturn.runtime.ceilings.measure import Ceilings, measure

__all__ = ["Ceilings", "measure"]
