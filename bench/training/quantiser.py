"""The codec's books while they are trained: running means of what falls to each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.model.mimi import Mimi

DECAY = 0.98
"""Of the running means, a step."""
DEAD = 0.05
"""Uses a step, averaged, under which a row is put where the data is."""


@dataclass(frozen=True)
class Quantised:
    """latents [M, dim] for the decoder, gradients passed straight through; commitment: how far the
    encoder stands from the books; codes [M, Q]; residuals: what each book was given, [M, d] each.
    """

    latents: Tensor
    commitment: Tensor
    codes: Tensor
    residuals: tuple[Tensor, ...]


def groups(codec: Mimi, x: Tensor) -> tuple[tuple[Tensor, slice, Tensor], ...]:
    """x [M, dim] -> of both groups: x in the books' space [M, d], which books, the way back."""
    split = codec.config.num_semantic
    books, encoder = codec.decoder.codebooks, codec.encoder
    return (
        (F.linear(x, encoder.semantic), slice(0, split), books.semantic),
        (F.linear(x, encoder.acoustic), slice(split, None), books.acoustic),
    )


def quantise(codec: Mimi, x: Tensor) -> Quantised:
    """x [M, dim], the encoder's latents."""
    latents = x.new_zeros(())
    commitment = x.new_zeros(())
    codes: list[Tensor] = []
    residuals: list[Tensor] = []
    for projected, books, back in groups(codec, x):
        total = torch.zeros_like(projected)
        for table in codec.decoder.codebooks.tables.detach()[books]:
            left = (projected - total).detach()
            code = (table.square().sum(-1) / 2 - left @ table.T).argmin(-1)
            total = total + F.embedding(code, table)
            codes.append(code)
            residuals.append(left)
            commitment = commitment + F.mse_loss(projected, total)
        latents = latents + F.linear(projected + (total - projected).detach(), back)
    return Quantised(latents, commitment, torch.stack(codes, 1), tuple(residuals))


class Books:
    """Counts [Q, size] and sums [Q, size, d] of the vectors that fall to each row."""

    def __init__(self, codec: Mimi) -> None:
        self._tables = codec.decoder.codebooks.tables
        self.counts = torch.ones(self._tables.shape[:2])
        self.sums = self._tables.detach().clone()

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts, self.sums = state["counts"], state["sums"]

    @torch.no_grad()
    def begin(self, codec: Mimi, x: Tensor, generator: torch.Generator, rounds: int = 8) -> None:
        """Each book by k-means of what those before it leave over of x [M, dim], from the first
        rows of x on: those that fit into a book become its rows, in their order.
        """
        for projected, books, _ in groups(codec, x):
            left = projected
            for q in range(*books.indices(len(self._tables))):
                table = _k_means(left, self._tables.shape[1], rounds, generator)
                self._tables[q] = table
                left = left - table[_nearest(left, table)]
        self.counts.fill_(1.0)
        self.sums.copy_(self._tables)

    @torch.no_grad()
    def update(self, codes: Tensor, residuals: Sequence[Tensor], generator: torch.Generator) -> int:
        """One step of the running means; the rows that died and were moved are counted."""
        moved = 0
        for q, left in enumerate(residuals):
            chosen = codes[:, q]
            fell = torch.zeros_like(self.counts[q]).index_add_(
                0, chosen, torch.ones_like(left[:, 0])
            )
            total = torch.zeros_like(self.sums[q]).index_add_(0, chosen, left)
            self.counts[q].lerp_(fell, 1 - DECAY)
            self.sums[q].lerp_(total, 1 - DECAY)
            dead = (self.counts[q] < DEAD).nonzero()[:, 0]
            if len(dead):
                pick = torch.randint(len(left), (len(dead),), generator=generator)
                self.sums[q, dead] = left[pick]
                self.counts[q, dead] = 1.0
                moved += len(dead)
            self._tables[q] = self.sums[q] / self.counts[q, :, None]
        return moved


def _nearest(x: Tensor, table: Tensor) -> Tensor:
    return (table.square().sum(-1) / 2 - x @ table.T).argmin(-1)


def _k_means(x: Tensor, size: int, rounds: int, generator: torch.Generator) -> Tensor:
    table = x[torch.arange(size) % len(x)]
    for _ in range(rounds):
        code = _nearest(x, table)
        counts = torch.bincount(code, minlength=size).clamp_min(1)[:, None]
        means = torch.zeros_like(table).index_add_(0, code, x) / counts
        empty = torch.bincount(code, minlength=size) == 0
        means[empty] = x[torch.randint(len(x), (int(empty.sum()),), generator=generator)]
        table = means
    return table
