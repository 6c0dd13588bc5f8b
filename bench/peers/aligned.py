"""Token ids in blocks of one expert each, as vLLM's and SGLang's Triton kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor


def align_block_size(ids: Tensor, block: int, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids [T, A] int32 -> (sorted pairs [M] int32, expert of each block [M / block] int32, rows in
    use [1] int32). Pair T * A pads an expert's last block, expert -1 what lies past the end. No
    host sync.

    Stands for a compiled kernel that their wheels bind to another torch.
    """
    flat = ids.reshape(-1).long()
    pairs = flat.shape[0]
    size = (pairs + min(pairs, num_experts) * (block - 1) + block - 1) // block * block
    sorted_ids, order = flat.sort(stable=True)
    experts = torch.arange(num_experts, device=ids.device)
    ends = torch.searchsorted(sorted_ids, experts, right=True)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    padded = (counts + block - 1) // block * block
    bounds = padded.cumsum(0)
    shift = bounds - padded - (ends - counts)
    places = torch.arange(pairs, device=ids.device) + shift[sorted_ids]
    tokens = torch.full((size,), pairs, dtype=torch.int32, device=ids.device)
    tokens.scatter_(0, places, order.int())
    starts = torch.arange(0, size, block, device=ids.device)
    of_block = torch.searchsorted(bounds, starts, right=True).int()
    of_block = torch.where(starts < bounds[-1], of_block, -1)
    return tokens, of_block, bounds[-1:].int()
