"""What is done about lateness, as policy: count it, then drop old input, then end one session.

No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from microturn.runtime.errors import ConfigError


@dataclass(frozen=True)
class LatenessPolicy:
    """The ladder's rungs. Every late tick is counted; 0 switches a rung off.

    A tick is late when its outputs were made after its deadline, or when it ran over whole grid
    points. Lateness is late ticks less ticks in time, never below 0, so that a single stall of any
    length counts once and a rung is reached only by what lasts.

    degrade_after  lateness from which sessions keep only their newest audio
    degrade_to_ms  how much of it, at least a tick; what is dropped is marked on the next output
    evict_after    lateness at which the worst session is ended, so that the others are in time; it
                   counts from 0 again afterwards. The last session is never ended by this.
    catch_up_ticks steps a tick may add for sessions whose audio waits because ticks were skipped
                   or failed; only while the prediction says that they end before the deadline

    Raises ConfigError.
    """

    degrade_after: int = 3
    degrade_to_ms: int = 300
    evict_after: int = 50
    catch_up_ticks: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"lateness.{name} must be an integer of 0 or more, got {value!r}")
        if self.evict_after and self.evict_after < self.degrade_after:
            raise ConfigError(
                f"lateness.evict_after must not come before degrade_after, got "
                f"{self.evict_after} and {self.degrade_after}"
            )


COUNT_ONLY = LatenessPolicy(degrade_after=0, evict_after=0, catch_up_ticks=0)
"""For measuring: lateness is counted and nothing is done about it."""


class Rung(Enum):
    """What a tick's end asks for."""

    NOTHING = "nothing"
    DEGRADE = "degrade"
    EVICT = "evict"


class Ladder:
    """Lateness over ticks, and the rung it stands on.

    since: the first tick of the present lateness; None while there is none.
    """

    def __init__(self, policy: LatenessPolicy) -> None:
        self._policy = policy
        self.lateness = 0
        self.since: int | None = None

    def climb(self, tick: int, late: bool) -> Rung:
        """After a tick. The caller that is asked to evict calls `evicted` when it did."""
        self.lateness = self.lateness + 1 if late else max(0, self.lateness - 1)
        if not self.lateness:
            self.since = None
        elif self.since is None:
            self.since = tick
        policy = self._policy
        if not late:
            return Rung.NOTHING
        if policy.evict_after and self.lateness >= policy.evict_after:
            return Rung.EVICT
        if policy.degrade_after and self.lateness >= policy.degrade_after:
            return Rung.DEGRADE
        return Rung.NOTHING

    def evicted(self) -> None:
        """The others get as long again to be in time."""
        self.lateness = 0
        self.since = None
