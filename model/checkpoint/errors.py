"""What is wrong with a checkpoint."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit. The text names the file and, where one
    is at fault, the tensor.
    """
