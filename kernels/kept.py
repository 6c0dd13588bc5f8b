"""What is made of a tensor, kept until that changes."""

from __future__ import annotations

from torch import Tensor


def stamp(tensor: Tensor) -> tuple[int, int]:
    """Where its memory is and how often torch wrote it. Tensors made under inference_mode do not
    count: load those before use.
    """
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
