"""One of several ranks that share a model: heads, widths of experts and rows of the vocabulary."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microturn.model.interaction.config import InteractionConfig


def shard(config: InteractionConfig, ways: int) -> InteractionConfig:
    """The sizes of one of `ways` ranks. Norms, router, depth head and codec are whole in each; the
    vocabulary's last rows, where it does not divide, are left out: for sizes, not for weights.

    Raises ValueError where heads or widths do not divide.
    """
    if ways == 1:
        return config
    trunk = config.trunk
    names = ("num_heads", "num_kv_heads", "local_num_heads", "local_num_kv_heads")
    cut = {}
    for name in (*names, "dense_width", "expert_width"):
        cut[name], rest = divmod(getattr(trunk, name), ways)
        if rest:
            raise ValueError(
                f"{config.name} has {name} = {getattr(trunk, name)}, which {ways} ranks cannot "
                f"share evenly"
            )
    rows = trunk.vocab_size // ways // 16 * 16
    words = min(rows, trunk.unpadded_vocab_size // ways)
    small = dataclasses.replace(trunk, **cut, vocab_size=rows, unpadded_vocab_size=words)
    return dataclasses.replace(
        config,
        trunk=small,
        depth=dataclasses.replace(config.depth, text_vocab_size=words),
        listen_id=words - 3,
        delegate_id=words - 2,
        start_id=words - 1,
    )
