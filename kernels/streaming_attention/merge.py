"""The one place where softmax partials are added up, and so the order that defines their bits."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = torch.finfo(torch.float32).min
"""The maximum of a partial that has seen no key; its sums are zero and it merges as an identity."""


def merge(maxima: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Partials i of dimension 1, each scaled to the largest maximum, added from left to right.

    maxima [N, P, ...]    largest logit each partial has seen, NOTHING where none
    sums   [N, P, ..., W] what it has summed under exp(logit - maximum)
    -> ([N, ...], [N, ..., W])

    A partial without keys changes no bits wherever it stands: its factor is 0 (or 1, beside others
    like it), its sums are 0, and a maximum has no rounding. So the result does not depend on how
    many such partials a batch happens to carry.
    """
    top = maxima.amax(1)
    scaled = (sums * (maxima - top[:, None]).exp()[..., None]).unbind(1)
    total = scaled[0]
    for part in scaled[1:]:
        total = total + part
    return top, total
