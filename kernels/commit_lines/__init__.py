"""The end of a tick: lines whose numbers are finite move on, the others stay where they were."""

from microturn.kernels.commit_lines.op import commit_lines
from microturn.kernels.commit_lines.reference import Committed, Said

__all__ = ["Committed", "Said", "commit_lines"]
