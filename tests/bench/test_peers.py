"""What is handed to each peer is right: its result on the CPU, or that of a plain torch function of
the library's documented signature, is the op's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.bench import check
from microturn.bench.peers import (
    aligned,
    deep_gemm,
    experts,
    flash_attention,
    flashinfer,
    liger,
    megablocks,
    sglang,
    vllm,
)
from microturn.bench.peers.kept import Kept, kept, without_bias
from microturn.bench.providers.base import DoesLess, Unavailable
from microturn.bench.providers.every import every
from microturn.bench.subjects import Subject, subjects
from microturn.kernels.registry import Case, OpInputs
from microturn.kernels.testing import DTYPES, MAX_ERROR, to_device

CPU = torch.device("cpu")
NOT_PEERS = ("microturn", "reference")
NEED_ORACLES = {
    "moshi": "moshi",
    "moshi_one_graph": "moshi",
    "moshi_depformer": "moshi",
    "transformers": "transformers",
}


def copied(inputs: OpInputs) -> OpInputs:
    return OpInputs(*to_device(tuple(inputs), CPU))


def on_the_cpu() -> Iterator[Any]:
    for subject in subjects().values():
        for case in subject.cases:
            for provider in every():
                if provider.name not in NOT_PEERS and provider.supports(subject.name, case, "fp32"):
                    yield pytest.param(
                        provider, subject, case, id=f"{provider.name}-{subject.name}-{case.id}"
                    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("provider", "subject", "case"), list(on_the_cpu()))
@torch.inference_mode()
def test_a_peer_that_runs_on_a_cpu_gives_the_ops_result(
    provider: Any, subject: Subject, case: Case
) -> None:
    pytest.importorskip(NEED_ORACLES.get(provider.name, "torch"))
    inputs = subject.make_inputs(case, seed=1)
    own = provider.expected(subject.name, case, "fp32", copied(inputs)) if less(provider) else None
    wanted = own[0] if own else check.expected(subject.reference, inputs, CPU).result
    try:
        found = provider.prepare(subject.name, case, "fp32", copied(inputs), CPU)()
    except Unavailable as reason:
        assert re.search("equally many rows|of one length|a power of two rows", str(reason))
        return
    assert check.error(found, wanted) <= MAX_ERROR["fp32"]


def less(provider: Any) -> bool:
    return isinstance(provider, DoesLess)


def test_names_differ_and_every_peer_of_the_issue_is_there() -> None:
    names = [p.name for p in every()]
    assert len(set(names)) == len(names)
    for wanted in (
        *("torch", "torch_grouped_mm", "torch_sdpa", "torch_flex", "flash_attn_2", "flash_attn_3"),
        *("megablocks", "flashinfer", "deep_gemm", "liger", "vllm_fused_moe", "sglang_fused_moe"),
        *("moshi", "transformers"),
    ):
        assert wanted in names


def test_what_needs_a_gpu_says_so() -> None:
    subject = subjects()["streaming_attention"]
    case = subject.cases[1]
    inputs = subject.make_inputs(case, seed=0, dtype=DTYPES["bf16"])
    (provider,) = [p for p in every() if p.name == "flash_attn_3"]
    with pytest.raises(Unavailable, match="flash_attn_3 runs on a CUDA device, this is cpu"):
        provider.prepare(subject.name, case, "bf16", inputs, CPU)


# Experts: each library's functions, by their documented meaning, in plain torch.


def gmm(a: Tensor, b: Tensor, sizes: Tensor, trans_b: bool = False) -> Tensor:
    """grouped_gemm.ops.gmm: a [M, K], b [E, K, N], or [E, N, K] where trans_b; sizes on a CPU."""
    assert sizes.dtype == torch.int64 and sizes.device.type == "cpu"
    runs = a.split_with_sizes(sizes.tolist())
    return torch.cat([r @ (w.T if trans_b else w) for r, w in zip(runs, b, strict=True)])


def scatter(
    x: Tensor, indices: Tensor, bin_ids: Tensor, shares: Tensor, bins: Tensor, a: int
) -> Tensor:
    out = x.new_zeros(len(indices) // a, x.shape[1])
    rows = indices.long()
    out.index_add_(0, rows // a, x * shares[rows, None])
    return out


MEGABLOCKS = SimpleNamespace(
    sort=lambda x, bits: tuple(t.int() for t in x.sort(stable=True)),
    histogram=lambda x, e: torch.bincount(x.long(), minlength=e).int(),
    inclusive_cumsum=lambda x, dim: x.cumsum(dim),
    gather=lambda x, indices, bin_ids, bins, a: x[indices.long() // a],
    scatter=scatter,
)


def liger_moe(x: Tensor, w13: Tensor, w2: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    """gate_up_proj [E, 2 * I, H], gate first; down_proj [E, H, I]; ids int32."""
    assert ids.dtype == torch.int32
    y = torch.zeros_like(x)
    for t, (row, of_row) in enumerate(zip(ids.tolist(), shares.tolist(), strict=True)):
        for e, share in zip(row, of_row, strict=True):
            gate, up = (w13[e] @ x[t]).chunk(2)
            y[t] += share * (w2[e] @ (F.silu(gate) * up))
    return y


def tiles(
    rows: Tensor,
    weight: Tensor,
    shares: Tensor | None,
    tokens: Tensor | None,
    blocks: Tensor,
    counted: Tensor,
    top_k: int,
    block: int,
    out: Tensor,
) -> None:
    """vLLM's and SGLang's kernel: block b multiplies by its expert the rows `pair // top_k` of its
    `block` pairs and writes to `pair`; without tokens a block is one pair.
    """
    flat = out.view(-1, out.shape[-1])
    flat.fill_(float("nan"))
    for b, expert in enumerate(blocks.tolist()):
        if b * block >= int(counted):
            break
        pairs = [b] if tokens is None else tokens[b * block : (b + 1) * block].tolist()
        for pair in pairs:
            if pair >= flat.shape[0]:
                continue
            y = weight[expert] @ rows[pair // top_k]
            flat[pair] = y if shares is None else y * shares.view(-1)[pair]


CONFIG = {"BLOCK_SIZE_M": 4}


def vllm_kernel(*args: Any, **options: Any) -> None:
    a, b, c, _, _, shares, tokens, blocks, counted, weigh, top_k, config = args
    assert weigh == (shares is not None) and options["use_fp8_w8a8"] is False
    tiles(a, b, shares, tokens, blocks, counted, top_k, config["BLOCK_SIZE_M"], c)


VLLM = SimpleNamespace(
    try_get_optimal_moe_config=lambda *sizes: CONFIG,
    dtype_of=lambda dtype: dtype,
    invoke_fused_moe_triton_kernel=vllm_kernel,
)


def sglang_kernel(*args: Any, **options: Any) -> None:
    a, b, _, c, _, _, _, shares, _, tokens, blocks, counted, weigh, top_k, config = args
    block = config["BLOCK_SIZE_M"]
    tiles(a, b, shares if weigh else None, tokens, blocks, counted, top_k, block, c)


def act_and_mul(hidden: Tensor, out: Tensor, config: Any, ids: Tensor, blocks: Tensor) -> None:
    out.copy_(experts.silu_and_mul(hidden))


SGLANG = SimpleNamespace(
    try_get_optimal_moe_config=lambda *sizes, return_down_config: (CONFIG, (None, None)),
    dtype_of=lambda dtype: dtype,
    invoke_fused_moe_kernel=sglang_kernel,
    act_and_mul_triton=act_and_mul,
    moe_sum_reduce_triton=lambda choices, out, factor: out.copy_(factor * choices.sum(1)),
)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them in plain torch, and any device good enough."""
    made = {
        "megablocks.ops": MEGABLOCKS,
        "grouped_gemm": SimpleNamespace(ops=SimpleNamespace(gmm=gmm)),
        "liger_kernel.ops.fused_moe": SimpleNamespace(
            LigerFusedMoEFunction=SimpleNamespace(apply=liger_moe)
        ),
        "vllm_fused_moe": VLLM,
        "sglang_fused_moe": SGLANG,
    }
    for module in (megablocks, liger, vllm, sglang):
        monkeypatch.setattr(module, "library", made.__getitem__)
        monkeypatch.setattr(module, "on_gpu", lambda device, what: None)


MOE_CASES = [c for c in subjects()["grouped_experts"].cases if getattr(c, "T", 0)]


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("case", MOE_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("make", [megablocks.make, liger.make, vllm.make, sglang.make])
@torch.inference_mode()
def test_experts_are_laid_out_as_each_library_reads_them(make: Any, case: Case) -> None:
    subject = subjects()["grouped_experts"]
    inputs = subject.make_inputs(case, seed=2)
    wanted = check.expected(subject.reference, inputs, CPU).result
    assert check.error(make(experts.layer(inputs))(), wanted) <= MAX_ERROR["fp32"]


@pytest.mark.usefixtures("libraries")
@torch.inference_mode()
def test_gate_and_up_the_wrong_way_round_would_be_seen() -> None:
    subject = subjects()["grouped_experts"]
    inputs = subject.make_inputs(MOE_CASES[1], seed=2)
    layer = experts.layer(inputs)
    swapped = layer._replace(w13=layer.w13.roll(layer.w13.shape[1] // 2, 1))
    wanted = check.expected(subject.reference, inputs, CPU).result
    for make in (megablocks.make, liger.make, vllm.make, sglang.make):
        assert check.error(make(swapped)(), wanted) > 0.1


def test_pairs_are_aligned_to_blocks_of_one_expert() -> None:
    ids = torch.tensor([[2, 0], [3, 2], [0, 2]], dtype=torch.int32)
    tokens, blocks, counted = aligned.align_block_size(ids, 2, 4)
    assert tokens.tolist()[: int(counted)] == [1, 4, 0, 3, 5, 6, 2, 6]
    assert blocks.tolist()[:4] == [0, 2, 2, 3] and set(blocks.tolist()[4:]) <= {-1}


# DeepGEMM: products of numbers rounded to 8 bits.


def grouped_product(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], out: Tensor, of_row: Tensor
) -> None:
    """m_grouped_fp8_gemm_nt_contiguous: scales [M, K / 128] and [E, N / 128, K / 128], experts in
    runs of whole blocks of 128 rows; rows of expert -1 are left as they are.
    """
    assert of_row.dtype == torch.int32 and len(of_row) % 128 == 0
    for start in range(0, len(of_row), 128):
        assert len(set(of_row[start : start + 128].tolist()) - {-1}) <= 1
    block = deep_gemm.BLOCK
    rows = a[0].float() * a[1].repeat_interleave(block, 1)
    out.fill_(float("nan"))
    for e in set(of_row.tolist()) - {-1}:
        each = b[1][e].repeat_interleave(block, 0).repeat_interleave(block, 1)
        weight = b[0][e].float() * each[: b[0].shape[1]]
        mine = of_row == e
        out[mine] = (rows[mine] @ weight.T).to(out.dtype)


@torch.inference_mode()
def test_deep_gemm_is_given_padded_runs_of_rows_and_square_scales() -> None:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        drawn: Tensor = torch.randn(shape, generator=g) * shape[-1] ** -0.5
        return drawn

    ids = torch.rand(5, 6, generator=g).argsort(1)[:, :3].int()
    shares = torch.rand(5, 3, generator=g)
    layer = experts.Layer(
        256**0.5 * normal(5, 256), ids, shares, normal(6, 256, 256), normal(6, 256, 128)
    )
    found = deep_gemm.experts_call(layer, grouped_product)()
    rounded = deep_gemm.expected_experts(layer)
    exact = liger_moe(layer.x, layer.w13, layer.w2, ids, shares)
    assert check.error(found, rounded) < 2e-3
    assert 1e-2 < check.error(rounded, exact) < 8e-2


# Attention over a cache: flash-attn's and FlashInfer's calls in plain torch.


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """One line, q [n, H, D] over k and v [L, Hkv, D], the last row seeing the last key."""
    n, h, _ = q.shape
    k, v = (t.repeat_interleave(h // k.shape[1], 1) for t in (k, v))
    distance = torch.arange(len(k) - n, len(k))[:, None] - torch.arange(len(k))
    hidden = (distance < 0) | (distance > window if window >= 0 else distance < 0)
    logits = torch.einsum("nhd,lhd->hnl", q, k) * scale
    return torch.einsum("hnl,lhd->nhd", logits.masked_fill(hidden, -torch.inf).softmax(-1), v)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, start: int) -> Tensor:
    cos, sin = (t[start : start + len(x), None] for t in (cos, sin))
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Any = None, v: Any = None, **options: Any
) -> Tensor:
    """flash_attn_with_kvcache, as its docstring has it."""
    table = options.get("block_table", options.get("page_table"))
    assert options["causal"] and options["cache_seqlens"].dtype == torch.int32
    left, right = options["window_size"]
    assert (left, right) == (-1, -1) or right == 0
    out = []
    for b, past in enumerate(options["cache_seqlens"].tolist()):
        keys, values = (
            cache[b] if table is None else cache[table[b].long()].flatten(0, 1)
            for cache in (k_cache, v_cache)
        )
        mine = q[b]
        if k is not None:
            new = k[b]
            if "rotary_cos" in options:
                assert options["rotary_interleaved"]
                tables = options["rotary_cos"], options["rotary_sin"]
                new, mine = rotated(new, *tables, past), rotated(mine, *tables, past)
            keys, values = torch.cat([keys[:past], new]), torch.cat([values[:past], v[b]])
        else:
            keys, values = keys[:past], values[:past]
        out.append(attend(mine, keys, values, options["softmax_scale"], left))
    return torch.stack(out)


class Planned:
    """A FlashInfer wrapper over pages in NHD; `decode` has one row a line."""

    def __init__(self, workspace: Tensor, layout: str, **options: Any) -> None:
        assert layout == "NHD" and workspace.numel() >= 128 << 20

    def plan(self, *args: Any, window_left: int, sm_scale: float, **options: Any) -> None:
        decode = len(args) == 7
        args = (None, *args) if decode else args
        starts, indptr, self.indices, last, self.h, self.hkv, self.d, page = args
        assert decode or options["causal"]
        self.indptr, self.page = indptr.tolist(), page
        lines = len(self.indptr) - 1
        self.starts = list(range(lines + 1)) if decode else starts.tolist()
        counts = [b - a for a, b in zip(self.indptr, self.indptr[1:], strict=False)]
        self.lengths = [(c - 1) * page + n for c, n in zip(counts, last.tolist(), strict=True)]
        self.window, self.scale = window_left, sm_scale

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        out = []
        for b, length in enumerate(self.lengths):
            pages = self.indices[self.indptr[b] : self.indptr[b + 1]].long()
            k, v = (c[pages].flatten(0, 1)[:length] for c in cache)
            mine = q[self.starts[b] : self.starts[b + 1]]
            out.append(attend(mine, k, v, self.scale, self.window))
        return torch.cat(out)


def append_paged(
    k: Tensor, v: Tensor, lines: Tensor, places: Tensor, cache: Any, *rest: Any
) -> None:
    indices, indptr, _, layout = rest
    assert layout == "NHD" and indptr.dtype == indices.dtype == torch.int32
    size = cache[0].shape[1]
    pages = indices[indptr[lines.long()].long() + places.long() // size].long()
    for kept_, new in zip(cache, (k, v), strict=True):
        kept_[pages, places.long() % size] = new


FLASHINFER = SimpleNamespace(
    BatchDecodeWithPagedKVCacheWrapper=Planned,
    BatchPrefillWithPagedKVCacheWrapper=Planned,
    append_paged_kv_cache=append_paged,
)


def flash(page_size: int, name: str) -> Any:
    return lambda of: flash_attention.call_of(of, with_kvcache, page_size, name)


def infer(backend: str) -> Any:
    def make(of: Kept) -> Any:
        if of.rope_theta is not None:
            raise Unavailable("its rotary embedding is another call")
        return flashinfer.attend(of, FLASHINFER, backend)

    return make


ATTENTION_CASES = [c for c in subjects()["streaming_attention"].cases if getattr(c, "T", 0)]
CACHES = {
    "flash_attn_2": flash(256, "block_table"),
    "flash_attn_3": flash(128, "page_table"),
    "in one run": flash(0, "page_table"),
    "flashinfer": infer("fa2"),
    "flashinfer_fa3": infer("fa3"),
}


@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.id)
@torch.inference_mode()
def test_keys_lie_in_caches_as_attention_libraries_read_them(make: Any, case: Case) -> None:
    subject = subjects()["streaming_attention"]
    inputs = subject.make_inputs(case, seed=3)
    try:
        call = make(kept(copied(inputs)))
    except Unavailable:
        return
    less = without_bias(copied(inputs))
    wanted = less[0] if less else check.expected(subject.reference, inputs, CPU).result
    first, again = call(), call()
    assert check.error(first, wanted) <= MAX_ERROR["fp32"]
    assert torch.equal(first, again)


@torch.inference_mode()
def test_a_window_one_key_too_wide_would_be_seen() -> None:
    subject = subjects()["streaming_attention"]
    (case,) = [c for c in ATTENTION_CASES if getattr(c, "window", 0) == 16]
    inputs = subject.make_inputs(case, seed=3)
    less = without_bias(copied(inputs))
    assert less is not None
    of = kept(copied(inputs))
    wide = Kept(**{**vars(of), "window": of.window + 1})
    assert of.sliding
    for make in CACHES.values():
        assert check.error(make(wide)(), less[0]) > 1e-2
