"""Attention and RMS norm by FlashInfer (0.6.1), compiled by itself at the first call. No relative
bias.
"""

from __future__ import annotations

from typing import Any

import torch

from microturn.bench.peers.common import library, on_gpu
from microturn.bench.peers.kept import OP, Kept, kept, without_bias
from microturn.bench.providers.base import Call, Unavailable
from microturn.kernels.registry import Case, OpInputs

PAGE = 64
WORKSPACE = 256 << 20


def attend(of: Kept, lib: Any, backend: str) -> Call:
    """Plans on the host here, outside the call: sizes do not change between calls."""
    b, n, h, hkv, d = of.shape
    k, v, table = of.pages(PAGE)
    device, totals = of.q.device, of.total.cpu()
    counts = (totals + PAGE - 1) // PAGE
    indptr = torch.zeros(b + 1, dtype=torch.int32)
    indptr[1:] = counts.cumsum(0)
    indices = torch.cat([table[i, : int(c)] for i, c in enumerate(counts)]).int()
    last = ((totals - 1) % PAGE + 1).int()
    workspace = torch.zeros(WORKSPACE, dtype=torch.uint8, device=device)
    window = of.window - 1 if of.sliding else -1
    common = {
        "window_left": window,
        "sm_scale": of.scale,
        "q_data_type": of.q.dtype,
        "kv_data_type": k.dtype,
    }
    on_device = [indptr.to(device), indices, last.to(device)]
    if n == 1 and backend == "fa2":
        wrapper = lib.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(*on_device, h, hkv, d, PAGE, **common)
    else:
        wrapper = lib.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend)
        starts = torch.arange(b + 1, dtype=torch.int32, device=device) * n
        wrapper.plan(starts, *on_device, h, hkv, d, PAGE, causal=True, **common)
    q = of.q.view(b * n, h, d)
    lines = torch.arange(b, dtype=torch.int32, device=device).repeat_interleave(n)
    places = of.positions().reshape(-1).int()
    new = None if of.new is None else [t.reshape(b * n, hkv, d).to(k.dtype) for t in of.new]

    def call() -> Any:
        if new is not None:
            lib.append_paged_kv_cache(
                *new, lines, places, (k, v), on_device[1], on_device[0], on_device[2], "NHD"
            )
        return wrapper.run(q, (k, v))

    return call


class FlashInfer:
    def __init__(self, name: str, backend: str, dtypes: tuple[str, ...]) -> None:
        self.name, self._backend, self._dtypes = name, backend, dtypes

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        if op == "rms_norm":
            return self._backend == "fa2" and dtype == "bf16"
        return op == OP and dtype in self._dtypes and bool(getattr(case, "T", 1))

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        on_gpu(device, "FlashInfer")
        lib = library("flashinfer")
        if op == "rms_norm":
            x, weights = inputs.x, inputs.weights
            rows, gain = x.reshape(-1, x.shape[-1]), weights.gain.to(x.dtype)
            return lambda: lib.rmsnorm(rows, gain, weights.eps).view(x.shape)
        of = kept(inputs)
        if of.rope_theta is not None:
            raise Unavailable("its rotary embedding is another call")
        return attend(of, lib, self._backend)

    def expected(self, op: str, case: Case, dtype: str, inputs: OpInputs) -> tuple[Any, str] | None:
        return without_bias(inputs) if op == OP else None


PROVIDERS = (
    FlashInfer("flashinfer", "fa2", ("bf16", "fp8")),
    FlashInfer("flashinfer_fa3", "fa3", ("bf16",)),
)
