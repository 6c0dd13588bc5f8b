"""Attention by flash-attn 2 (2.8.3, reduced build) and 3 (tokenspeed-fa3): append and attend over a
paged cache, or over a run of keys where ours is a ring. Neither has the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from microturn.bench.peers.common import library, on_gpu
from microturn.bench.peers.kept import BIAS, OP, Kept, kept, rope_tables, without_bias
from microturn.bench.providers.base import Call, Unavailable
from microturn.kernels.arena import Pages
from microturn.kernels.registry import Case, OpInputs

FP8 = torch.float8_e4m3fn


def call_of(of: Kept, attend: Callable[..., Any], page_size: int, table_name: str) -> Call:
    """page_size 0: keys of a line in one run. Past positions come with the call, so that keys
    appended twice land in the same place.
    """
    table: dict[str, Any] = {}
    if page_size:
        k, v, pages = of.pages(page_size)
        table[table_name] = pages
    else:
        k, v = of.k, of.v
    if of.new is not None:
        table |= {"k": of.new[0], "v": of.new[1]}
    if of.rope_theta is not None:
        cos, sin = rope_tables(of)
        table |= {"rotary_cos": cos, "rotary_sin": sin, "rotary_interleaved": True}
    window = (of.window - 1, 0) if of.sliding else (-1, -1)
    q, past, scale = of.q, of.past, of.scale
    narrow = k.dtype == FP8

    def call() -> Any:
        y = attend(
            q.to(FP8) if narrow else q,
            k,
            v,
            cache_seqlens=past,
            softmax_scale=scale,
            causal=True,
            window_size=window,
            **table,
        )
        return of.output(y)

    return call


class FlashAttention:
    """page_size: of its own; module: that has flash_attn_with_kvcache."""

    def __init__(
        self, name: str, module: str, page_size: int, table: str, dtypes: tuple[str, ...]
    ) -> None:
        self.name, self._module, self._page_size = name, module, page_size
        self._table, self._dtypes = table, dtypes

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return op == OP and dtype in self._dtypes and bool(getattr(case, "T", 1))

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        on_gpu(device, self.name)
        attend = library(self._module).flash_attn_with_kvcache
        of = kept(inputs)
        if of.q.shape[-1] != 128 and self.name == "flash_attn_2":
            raise Unavailable(
                f"the reduced build has heads of 128 only, this case has {of.q.shape[-1]}"
            )
        if of.k.dtype == FP8 and of.new is not None:
            raise Unavailable("appends keys of the queries' type only")
        if of.rope_theta is not None and of.new is None:
            raise Unavailable("turns queries only together with keys it appends")
        paged = isinstance(inputs.state.k, Pages)
        return call_of(of, attend, self._page_size if paged else 0, self._table)

    def expected(self, op: str, case: Case, dtype: str, inputs: OpInputs) -> tuple[Any, str] | None:
        if dtype != "fp8":
            return without_bias(inputs)
        # Queries go in 8 bits too.
        inputs.x.q.copy_(inputs.x.q.to(FP8).to(inputs.x.q.dtype))
        found = without_bias(inputs)
        what = f"{BIAS} and 16-bit queries" if found else "16-bit queries"
        if found is None:
            from microturn.bench.check import expected
            from microturn.kernels.streaming_attention.reference import (
                streaming_attention_reference,
            )

            run = streaming_attention_reference
            return expected(run, inputs, inputs.x.q.device, state=False).result, what
        return found[0], what


PROVIDERS = (
    FlashAttention("flash_attn_2", "flash_attn", 256, "block_table", ("bf16",)),
    FlashAttention("flash_attn_3", "flash_attn_interface", 128, "page_table", ("bf16", "fp8")),
)
