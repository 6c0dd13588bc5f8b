"""Which rows go to which expert, and how many rows make a decode step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from microturn.kernels.router.work import DECODE_ROWS


def regime(num_rows: int) -> Literal["decode", "prefill"]:
    """How a step of that many rows runs on a GPU. Inside a regime a row's bits depend on nothing
    but the row; a plan that keeps to one regime keeps its bits.

    decode: every choice of a row is added to it in fp32. prefill: rounded to the dtype of x first.
    """
    return "decode" if num_rows <= DECODE_ROWS else "prefill"


@dataclass(frozen=True)
class ExpertLayout:
    """The T * A pairs (row t, choice a) sorted by expert, so that an expert's rows are one run.

    Worked example: T = 3 rows, A = 2 choices, E = 4 experts, topk_ids [[2, 0], [3, 2], [0, 2]].
    Pair p = t * A + a is choice a of row t, so pairs 0 to 5 go to experts 2, 0, 3, 2, 0, 2.

        expert_offsets [0, 2, 2, 5, 6]      expert 0 has places 0-1, expert 1 none, expert 2 has
                                            2-4, expert 3 has 5
        pairs          [1, 4, 0, 3, 5, 2]   place -> pair; inside an expert the order is the rows'
        rows           [0, 2, 0, 1, 2, 1]   place -> row of x: pairs // A
        places         [2, 0, 5, 3, 1, 4]   pair -> place, the inverse of `pairs`

    expert_offsets [E + 1] int64, pairs, rows, places [T * A] int64.
    """

    expert_offsets: Tensor
    pairs: Tensor
    rows: Tensor
    places: Tensor

    @classmethod
    def build(cls, topk_ids: Tensor, num_experts: int) -> ExpertLayout:
        """topk_ids [T, A] integers in [0, num_experts). No host sync."""
        flat = topk_ids.reshape(-1).long()
        pairs = flat.argsort(stable=True)
        offsets = torch.zeros(num_experts + 1, dtype=torch.int64, device=flat.device)
        offsets[1:] = torch.bincount(flat, minlength=num_experts).cumsum(0)
        places = torch.zeros_like(pairs)
        places[pairs] = torch.arange(pairs.shape[0], device=pairs.device)
        return cls(offsets, pairs, pairs // max(topk_ids.shape[1], 1), places)
