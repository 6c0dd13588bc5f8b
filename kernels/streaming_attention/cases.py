"""Shapes of streaming_attention, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch

    from microturn.kernels.arena import ArenaSpec, Pages, Ring


@dataclass(frozen=True)
class AttentionCase:
    """Lines of `counts[b]` rows from position `starts[b]` on.

    extent 0: no relative bias; log_floor 0: no log scaling; rope_theta 0: no rope.
    """

    counts: tuple[int, ...]
    starts: tuple[int, ...]
    H: int
    Hkv: int
    D: int
    window: int
    reason: str
    kind: Literal["ring", "pages"] = "ring"
    extent: int = 0
    d_rel: int = 16
    log_floor: int = 0
    rope_theta: float = 0.0
    max_rows: int = 64

    @property
    def T(self) -> int:
        return sum(self.counts)

    @property
    def id(self) -> str:
        pairs = {
            "B": len(self.counts),
            "T": self.T,
            "H": self.H,
            "Hkv": self.Hkv,
            "D": self.D,
            "window": self.window,
            "extent": self.extent,
            "floor": self.log_floor,
            "rope": int(self.rope_theta),
            "pos": max(self.starts, default=0),
            "kind": self.kind,
        }
        optional = ("extent", "floor", "rope")
        return ",".join(f"{k}={v}" for k, v in pairs.items() if v or k not in optional)

    @property
    def flops(self) -> int:
        """Both products over the visible keys, and the bias of every distance in reach."""
        total = 0
        for count, start in zip(self.counts, self.starts, strict=True):
            for position in range(start, start + count):
                visible = min(position + 1, self.window)
                total += 4 * visible * self.H * self.D
                total += 2 * min(visible, self.extent) * self.H * self.d_rel
        return total

    def bytes(self, itemsize: int) -> int:
        """q, r, out; keys and values that a line sees once, its own written once; the bank."""
        head = 2 * self.D + (self.d_rel if self.extent else 0)
        values = self.T * self.H * head + self.extent * self.d_rel
        for count, start in zip(self.counts, self.starts, strict=True):
            seen = min(start, self.window - 1) + count
            values += 2 * (seen + count) * self.Hkv * self.D
        return values * itemsize


CASES = (
    AttentionCase((), (), 4, 2, 64, 512, "no rows"),
    AttentionCase((1,), (0,), 4, 2, 64, 512, "a session's first row sees itself", extent=512),
    AttentionCase(
        (3,), (20_000,), 4, 2, 64, 512, "a tick of interaction-tiny, sliding layer", extent=512
    ),
    AttentionCase(
        (3,),
        (128_001,),
        4,
        2,
        64,
        2048,
        "a tick of interaction-tiny, global layer, past the log floor, extent below the window",
        kind="pages",
        extent=1024,
        log_floor=1000,
    ),
    AttentionCase((13,), (7,), 2, 2, 32, 512, "prime rows, one query head a kv head", extent=512),
    AttentionCase((9,), (130,), 4, 4, 48, 100, "one row over a tile, no bias, a leaf skipped"),
    AttentionCase((40,), (0,), 6, 2, 32, 16, "window shorter than the line", extent=16),
    AttentionCase(
        (50,), (0,), 4, 2, 32, 512, "extent shorter than the line, not a multiple of 16", extent=21
    ),
    AttentionCase(
        (64,), (600,), 4, 2, 32, 512, "a full append pass that wraps around the ring", extent=512
    ),
    AttentionCase(
        (5,), (126,), 4, 2, 32, 300, "a page begun within the tick", kind="pages", extent=130
    ),
    AttentionCase(
        (4, 1, 7, 2),
        (1300, 0, 255, 127),
        4,
        2,
        32,
        1200,
        "rows out of step, one of them fresh, up to two groups of leaves",
        kind="pages",
        extent=100,
        log_floor=50,
    ),
    AttentionCase(
        (2, 2), (400, 31), 8, 8, 64, 250, "the codec's transformer: rope, no bias", rope_theta=1e4
    ),
    AttentionCase(
        (3,), (9_000,), 32, 8, 128, 512, "a tick of interaction-small, sliding layer", extent=512
    ),
    AttentionCase(
        (1,),
        (9_000,),
        32,
        8,
        128,
        8192,
        "one row of interaction-small, global layer",
        kind="pages",
        extent=1024,
        log_floor=128_000,
    ),
)


def make_inputs(
    case: AttentionCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs; line b runs in slot b of arenas that hold NaN wherever no query looks."""
    import torch

    from microturn.kernels.arena import Pages, Ring
    from microturn.kernels.rows import RowBatch
    from microturn.kernels.streaming_attention.reference import (
        AttentionInputs,
        AttentionWeights,
        KVState,
        kv_specs,
    )

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(device, dtype)

    num_slots = len(case.counts) + 1
    r = draw(case.T, case.H, case.d_rel) if case.extent else None
    x = AttentionInputs(
        draw(case.T, case.H, case.D),
        draw(case.T, case.Hkv, case.D),
        draw(case.T, case.Hkv, case.D),
        r,
    )
    weights = AttentionWeights(
        window=case.window,
        scale=case.D**-0.5,
        rel_bank=draw(case.d_rel, case.extent) / case.d_rel**0.5 if case.extent else None,
        log_floor=case.log_floor or None,
        log_alpha=0.1 if case.log_floor else 0.0,
        rope_theta=case.rope_theta or None,
    )

    def arena(spec: ArenaSpec, table: torch.Tensor) -> Ring | Pages:
        view: Ring | Pages
        if case.kind == "ring":
            shape = (num_slots, spec.capacity, *spec.shape)
            view = Ring(torch.full(shape, float("nan"), dtype=dtype, device=device))
        else:
            shape = (table.numel(), spec.page_size, *spec.shape)
            view = Pages(torch.full(shape, float("nan"), dtype=dtype, device=device), table)
        for slot, start in enumerate(case.starts):
            past = torch.arange(max(0, start - case.window + 1), start, device=device)
            view.write(torch.full_like(past, slot), past, draw(len(past), *spec.shape))
        return view

    k, v = kv_specs(
        "case",
        kind=case.kind,
        window=case.window,
        max_rows_per_tick=case.max_rows,
        num_kv_heads=case.Hkv,
        head_dim=case.D,
        cursor="rows",
    )
    pages = k.capacity // k.page_size
    table = torch.randperm(num_slots * pages, generator=g).view(num_slots, pages)
    table = table.to(device, torch.int32)
    rows = RowBatch.build(range(len(case.counts)), case.counts, case.starts, device=device)
    return OpInputs(x, weights, KVState(arena(k, table), arena(v, table)), rows)
