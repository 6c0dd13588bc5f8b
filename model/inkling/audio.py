"""The audio tower: dMel bins to rows of the trunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microturn.model.inkling.norm import RMSNorm


class AudioTower(nn.Module):
    """RMSNorm(sum over mels of table[mel * bins + bin]) (spec/inkling.md 1.4).

    table [mels * bins, H]: the rows of mel 0, then of mel 1, ...
    """

    def __init__(self, hidden_size: int, mels: int = 80, bins: int = 16, eps: float = 1e-6) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(mels * bins, hidden_size))
        self.norm = RMSNorm(hidden_size, eps)
        self.register_buffer("offsets", torch.arange(mels) * bins, persistent=False)
        self.offsets: Tensor

    def reset_parameters(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.table.normal_(generator=generator)
        self.norm.reset_parameters()

    def forward(self, bins: Tensor) -> Tensor:
        """bins [T, mels] int64 in [0, bins) -> [T, H]; a row's bits depend on that row alone."""
        total = F.embedding_bag(bins + self.offsets, self.table, mode="sum")
        return self.norm(total)  # type: ignore[no-any-return]
