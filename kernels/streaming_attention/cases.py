"""Shapes of streaming_attention, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch

    from microturn.kernels.arena import ArenaSpec, Pages, Ring
    from microturn.kernels.draw import Draw
    from microturn.kernels.streaming_attention.reference import KVState


@dataclass(frozen=True)
class AttentionCase:
    """Lines of `counts[b]` rows from position `starts[b]` on.

    extent 0: no relative bias; log_floor 0: no log scaling; rope_theta 0: no rope; sinks: first
    keys of a line that stay visible; append False: the rows' keys and values are in the arenas
    already.
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
    sinks: int = 0
    max_rows: int = 64
    append: bool = True
    bar: Bar | None = None

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
            "sinks": self.sinks,
            "pos": max(self.starts, default=0),
            "kind": self.kind if self.append else f"{self.kind},append=0",
        }
        optional = ("extent", "floor", "rope", "sinks")
        return ",".join(f"{k}={v}" for k, v in pairs.items() if v or k not in optional)

    @property
    def flops(self) -> int:
        """Both products over the visible keys, and the bias of every distance in reach."""
        total = 0
        for count, start in zip(self.counts, self.starts, strict=True):
            for position in range(start, start + count):
                visible = min(position + 1, self.window + self.sinks)
                total += 4 * visible * self.H * self.D
                near = min(position + 1, self.window, self.extent)
                total += 2 * near * self.H * self.d_rel
        return total

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """q, r, out and the bank; keys and values that a line sees, once; its own read and
        written, where they are appended.
        """
        head = 2 * self.D + (self.d_rel if self.extent else 0)
        plain = self.T * self.H * head + self.extent * self.d_rel
        kept = 0
        for count, start in zip(self.counts, self.starts, strict=True):
            past = min(start, self.window - 1 + self.sinks)
            kept += 2 * (past + count) * self.Hkv * self.D
            if self.append:
                plain += 2 * count * self.Hkv * self.D
                kept += 2 * count * self.Hkv * self.D
        return plain * itemsize + kept * (streamed or itemsize)


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
        (50,), (0,), 2, 1, 32, 512, "extent shorter than the line, not a multiple of 16", extent=21
    ),
    AttentionCase(
        (64,), (600,), 2, 1, 32, 512, "a full append pass that wraps around the ring", extent=512
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
        (2, 2), (400, 31), 2, 2, 64, 250, "the codec's transformer: rope, no bias", rope_theta=1e4
    ),
    AttentionCase(
        (5, 3, 2),
        (40, 108, 5000),
        4,
        2,
        32,
        100,
        "sinks inside the window, half behind it, apart from it",
        extent=100,
        sinks=20,
    ),
    AttentionCase(
        (1, 3),
        (290, 9000),
        2,
        1,
        16,
        200,
        "sinks of two leaves, groups without a leaf between; the bank reaches behind the window",
        kind="pages",
        extent=250,
        log_floor=50,
        sinks=140,
    ),
    AttentionCase(
        (3,),
        (9_000,),
        8,
        2,
        128,
        512,
        "a tick of interaction-small, a quarter of a sliding layer",
        extent=512,
    ),
    AttentionCase(
        (1,),
        (9_000,),
        4,
        1,
        128,
        8192,
        "one row of interaction-small, an eighth of a global layer",
        kind="pages",
        extent=1024,
        log_floor=128_000,
    ),
)


DTYPES = ("bf16", "fp8")
NARROW_LOADS = {
    "attend.parts_ptr": "partials of this launch, in the L2",
    "append_rows.q_ptr": "a head a program, 128 values by 32 threads, in pairs that rope turns",
    "append_rows.k_in_ptr": "a head a program, 128 values by 32 threads, in pairs that rope turns",
    "append_rows.v_in_ptr": "a head a program, 128 values by 32 threads",
}


def _by_size(kept: int) -> dict[str, Any]:
    """What is asked of a decode step that reads so many bytes of keys and values: from 0.5 GB on
    97 % of the ceiling and no peer faster, from 64 to 128 MiB 3.6 TB/s.
    """
    if kept >= 500_000_000:
        return {"of_floor": 0.97, "times_peer": 1.0}
    if 64 << 20 <= kept <= 128 << 20:
        return {"us": round(kept / 3.6e6, 1)}
    return {}


def _global(
    sessions: int,
    context: int,
    count: int,
    reason: str,
    *,
    H: int = 32,
    Hkv: int = 8,
    bias: bool = True,
    us: float | None = None,
    times_beside: float | None = None,
) -> AttentionCase:
    """The attend of a global layer of interaction-small: the last `count` rows of each context.

    us            asked of it, whatever keys and values are kept in
    times_beside  the time of the same case without bias, asked of it
    """
    case = AttentionCase(
        (count,) * sessions,
        (context - count,) * sessions,
        H,
        Hkv,
        128,
        context,
        reason,
        kind="pages",
        extent=1024 if bias else 0,
        log_floor=128_000,
        append=False,
    )
    asked: dict[str, Any] = {} if us is None else {"us": us}
    if times_beside is not None:
        asked |= {"times_beside": times_beside, "beside": replace(case, extent=0).id}
    wide, narrow = (
        asked | (_by_size(2 * sessions * context * Hkv * 128 * width) if count <= 4 else {})
        for width in (2, 1)
    )
    if not wide and not narrow:
        return case
    return replace(case, bar=Bar(**wide, fp8=Bar(**narrow) if narrow else None))


BENCH_CASES = (
    _global(1, 1024, 1, "the shortest context that is not all latency", us=6.0),
    _global(1, 4096, 1, "as many leaves as a quarter of the machine"),
    _global(1, 16_384, 1, "67 MB"),
    _global(1, 32_768, 1, "134 MB in one session"),
    _global(8, 4096, 1, "134 MB in eight"),
    _global(8, 8192, 1, "a full window in eight sessions", times_beside=1.03),
    _global(8, 8192, 1, "the same without bias", bias=False),
    _global(8, 8192, 4, "four rows a session share a tile", times_beside=1.05),
    _global(8, 8192, 4, "the same without bias", bias=False),
    _global(8, 8192, 16, "sixteen rows a session, 64 places"),
    _global(8, 8192, 64, "a full append pass", times_beside=1.15),
    _global(8, 8192, 64, "the same without bias", bias=False),
    _global(8, 16_384, 1, "0.5 GB"),
    _global(8, 32_768, 1, "1.1 GB"),
    _global(8, 32_768, 1, "the same without bias", bias=False),
    _global(64, 8192, 1, "2.1 GB, a full machine"),
    _global(64, 8192, 4, "a tick of 64 sessions"),
    _global(64, 8192, 1, "an eighth of the model: 1 kv head", H=4, Hkv=1),
    AttentionCase(
        (1,) * 8,
        (16_383,) * 8,
        32,
        8,
        128,
        8192,
        "a full window in eight sessions, sinks far behind it",
        kind="pages",
        extent=1024,
        log_floor=128_000,
        sinks=4,
        append=False,
    ),
    *(
        AttentionCase(
            (count,) * 64,
            (9_000,) * 64,
            32,
            8,
            128,
            512,
            "a sliding layer of interaction-small, 64 sessions",
            extent=512,
            append=False,
        )
        for count in (1, 4)
    ),
    AttentionCase((2,) * 16, (400,) * 16, 8, 8, 64, 250, "the codec's transformer", rope_theta=1e4),
    AttentionCase(
        (1,) * 16,
        (9_000,) * 16,
        32,
        32,
        128,
        3000,
        "Moshi: a kv head for every head, rope, the ring full",
        rope_theta=1e4,
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

    from microturn.kernels.draw import Draw
    from microturn.kernels.rows import RowBatch
    from microturn.kernels.streaming_attention.reference import (
        AttentionInputs,
        AttentionWeights,
    )

    draw = Draw(seed, dtype, device)
    num_slots = len(case.counts) + 1
    q = draw.normal(case.T, case.H, case.D)
    k_in = draw.normal(case.T, case.Hkv, case.D) if case.append else None
    v_in = draw.normal(case.T, case.Hkv, case.D) if case.append else None
    r = draw.normal(case.T, case.H, case.d_rel) if case.extent else None
    # Stored distance by distance, [extent, d_rel]: the kernel reads 16 bytes at a time.
    bank = draw.normal(case.extent, case.d_rel, scale=case.d_rel**-0.5).T if case.extent else None
    weights = AttentionWeights(
        window=case.window,
        scale=case.D**-0.5,
        rel_bank=bank,
        log_floor=case.log_floor or None,
        log_alpha=0.1 if case.log_floor else 0.0,
        rope_theta=case.rope_theta or None,
        num_sink_tokens=case.sinks,
    )

    state = empty_kv(
        draw, num_slots, case.kind, case.window, case.max_rows, case.Hkv, case.D, case.sinks
    )
    for view in () if draw.meta else (state.k, state.v):
        for slot, (start, count) in enumerate(zip(case.starts, case.counts, strict=True)):
            end = start if case.append else start + count
            lowest = max(0, start - case.window + 1)
            past = torch.arange(min(case.sinks, lowest), device=device)
            past = torch.cat((past, torch.arange(lowest, end, device=device)))
            view.write(torch.full_like(past, slot), past, draw.normal(len(past), case.Hkv, case.D))
    rows = RowBatch.build(range(len(case.counts)), case.counts, case.starts, device=device)
    return OpInputs(AttentionInputs(q, k_in, v_in, r), weights, state, rows)


def empty_kv(
    draw: Draw,
    num_slots: int,
    kind: Literal["ring", "pages"],
    window: int,
    max_rows: int,
    num_kv_heads: int,
    head_dim: int,
    num_sinks: int = 0,
) -> KVState:
    """Arenas that hold NaN, pages in random order; 8 bits where the draw is FP8."""
    import torch

    from microturn.kernels.arena import Pages, Ring
    from microturn.kernels.draw import FP8
    from microturn.kernels.streaming_attention.reference import KVState, kv_specs

    specs = kv_specs(
        "case",
        kind=kind,
        window=window,
        max_rows_per_tick=max_rows,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        cursor="rows",
        num_sink_tokens=num_sinks,
    )
    pages = specs[0].capacity // specs[0].page_size
    table = draw.uniform(num_slots * pages).argsort().view(num_slots, pages).to(torch.int32)

    def arena(spec: ArenaSpec) -> Ring | Pages:
        lead = (num_slots, spec.capacity) if kind == "ring" else (table.numel(), spec.page_size)
        kept = FP8 if draw.fp8 else draw.dtype
        data = torch.empty(*lead, *spec.shape, dtype=kept, device=draw.device)
        if not draw.meta:
            data.fill_(float("nan"))
        if kind == "ring":
            return Ring(data, spec.pinned)
        return Pages(data, table, spec.pinned)

    k, v = specs
    return KVState(arena(k), arena(v))
