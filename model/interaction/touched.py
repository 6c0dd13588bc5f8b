"""How many experts a tick reads the weights of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from microturn.kernels.router import Routing


def experts_touched(
    decided: Sequence[Sequence[Routing]], row_offsets: Tensor, emits: Tensor, out: Tensor
) -> None:
    """Distinct routed experts of each pass, all layers together; on a GPU reads nothing back.

    decided      by pass and layer: the append pass, then those of one row a line that emits
    row_offsets  [B + 1] int32, emits [E] bool: other rows are of nobody, and load no expert
    out          [F] int64, 0 for a pass that was not made
    """
    if len(decided) < len(out) or not decided[0]:
        out.zero_()
    if not decided[0]:
        return
    hits = [routing.experts_hit for layers in decided for routing in layers]
    if all(hit is not None for hit in hits):  # kernels counted them
        counts = torch.cat([hit for hit in hits if hit is not None]).view(len(decided), -1)
        torch.sum(counts, 1, out=out[: len(decided)])
        return
    for i, layers in enumerate(decided):
        run = emits.cpu().numpy() if i else slice(int(row_offsets[-1]))
        ids = (routing.topk_ids.cpu().numpy()[run] for routing in layers)
        out[i] = sum(len(set(layer.ravel().tolist())) for layer in ids)
