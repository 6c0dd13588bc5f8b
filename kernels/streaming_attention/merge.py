"""The one place where softmax partials are added up, and so the order that defines their bits."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = torch.finfo(torch.float32).min
"""The maximum of a partial that has seen no key; its sums are zero and it merges as an identity."""


def merge(maxima: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Partials of dimension 1 folded from left to right: total, m = total * exp(m - n) +
    part * exp(m_part - n), n with n the larger of both maxima. The kernel's `fold` does the same.

    maxima [N, P, ..., 1]  largest logit each partial has seen, NOTHING where none
    sums   [N, P, ..., W]  what it has summed under exp(logit - maximum)
    -> ([N, ..., 1], [N, ..., W])

    A partial without keys changes no bits wherever it stands: its sums are 0, the other's factor is
    1 (before any key its own is 0, too), and a maximum has no rounding. So the result depends
    neither on how many such partials a batch happens to carry nor on where a program stops folding
    and leaves the rest to another.
    """
    count = maxima.shape[1]
    if count == 1:
        return maxima.squeeze(1), sums.squeeze(1)
    if count == 2:  # one sum has no order
        last = maxima.amax(1, keepdim=True)
        return last.squeeze(1), (sums * (maxima - last).exp_()).sum(1)
    top = maxima.cummax(1).values
    parts = (sums * (maxima - top).exp_()).unbind(1)
    kept = (top[:, :-1] - top[:, 1:]).exp_().unbind(1)
    total = parts[0]
    for part, factor in zip(parts[1:], kept, strict=True):
        total = (total * factor).add_(part)
    return top[:, -1], total
