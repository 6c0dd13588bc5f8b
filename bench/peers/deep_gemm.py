"""Products in 8 bits by DeepGEMM (sgl-deep-gemm 0.1.2). It rounds activations to 8 bits as well,
and weights in squares of 128 x 128.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.bench.peers.common import compiled, library, on_gpu
from microturn.bench.peers.experts import OP as EXPERTS
from microturn.bench.peers.experts import Layer, combine, layer, silu_and_mul
from microturn.bench.providers.base import Call
from microturn.kernels.quantized import plain
from microturn.kernels.registry import Case, OpInputs

FP8 = torch.float8_e4m3fn
BLOCK = 128
LARGEST = 448.0
LEFT_OUT = "16-bit activations; weights have a scale for 128 x 128"


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> e4m3 [M, K], scales [M, K / 128] fp32."""
    blocks = x.view(x.shape[0], -1, BLOCK).float()
    scales = blocks.abs().amax(-1).clamp_min(1e-4) / LARGEST
    return (blocks / scales[..., None]).view(x.shape).to(FP8), scales


def round_squares(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> e4m3 [N, K], scales [ceil(N / 128), K / 128] fp32."""
    n, k = weight.shape
    padded = F.pad(weight.float(), (0, 0, 0, -n % BLOCK))
    squares = padded.view(-1, BLOCK, k // BLOCK, BLOCK)
    scales = squares.abs().amax((1, 3)).clamp_min(1e-4) / LARGEST
    values = (squares / scales[:, None, :, None]).view(-1, k)[:n]
    return values.to(FP8).contiguous(), scales


def wide_rows(x: Tensor) -> Tensor:
    """The numbers that `round_rows` leaves, fp32."""
    values, scales = round_rows(x)
    return (values.float().view(x.shape[0], -1, BLOCK) * scales[..., None]).view(x.shape)


def wide_squares(weight: Tensor) -> Tensor:
    """The numbers that `round_squares` leaves, fp32."""
    values, scales = round_squares(weight)
    each = scales.repeat_interleave(BLOCK, 0)[: values.shape[0]].repeat_interleave(BLOCK, 1)
    return values.float() * each


def expected_linear(inputs: OpInputs) -> Tensor:
    return wide_rows(inputs.x) @ wide_squares(plain(inputs.weights, inputs.x.dtype)).T


def expected_experts(of: Layer) -> Tensor:
    """What DeepGEMM's two products make of a layer, expert by expert."""
    x = wide_rows(of.x)
    y = torch.zeros_like(x)
    for e in sorted(set(of.ids.view(-1).tolist())):
        row, choice = (of.ids == e).nonzero(as_tuple=True)
        hidden = (x[row] @ wide_squares(of.w13[e]).T).to(of.x.dtype)
        out = wide_rows(silu_and_mul(hidden)) @ wide_squares(of.w2[e]).T
        y.index_add_(0, row, out * of.shares[row, choice, None])
    return y


def _stacked(weight: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    scales = []
    for e in range(weight.shape[0]):
        values[e], scale = round_squares(weight[e])
        scales.append(scale)
    return values, torch.stack(scales)


def padded_places(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Each expert's pairs in blocks of 128 rows: (place of each pair [T * A], expert of each place,
    -1 where there is none, [M] int32). No host sync.
    """
    flat = ids.reshape(-1).long()
    pairs = flat.shape[0]
    size = (pairs + min(pairs, num_experts) * (BLOCK - 1) + BLOCK - 1) // BLOCK * BLOCK
    sorted_ids, order = flat.sort(stable=True)
    ends = torch.searchsorted(sorted_ids, torch.arange(num_experts, device=ids.device), right=True)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    padded = (counts + BLOCK - 1) // BLOCK * BLOCK
    bounds = padded.cumsum(0)
    shift = bounds - padded - (ends - counts)
    at = torch.arange(pairs, device=ids.device) + shift[sorted_ids]
    places = torch.empty_like(at).scatter_(0, order, at)
    of_place = torch.full((size,), -1, dtype=torch.int32, device=ids.device)
    return places, of_place.scatter_(0, at, sorted_ids.int())


def experts_call(of: Layer, product: Any) -> Call:
    """product(a, (values, scales), d, expert of each row): m_grouped_fp8_gemm_nt_contiguous."""
    device, (t, a) = of.x.device, of.ids.shape
    w13, w2 = _stacked(of.w13), _stacked(of.w2)
    x, ids, shares, experts = of.x, of.ids, of.shares, of.num_experts
    width, height = of.w13.shape[1], x.shape[1]

    def gathered(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        places, of_place = padded_places(ids, experts)
        values, scales = round_rows(x)
        rows = torch.arange(t * a, device=device) // a
        token = torch.zeros_like(of_place, dtype=torch.int64).scatter_(0, places, rows)
        return values[token], scales[token], places, of_place

    pack = compiled(gathered, device)
    act = compiled(lambda h: round_rows(silu_and_mul(h)), device)
    total = compiled(lambda y, places: combine(y[places].view(t, a, -1), shares, x.dtype), device)

    def call() -> Any:
        values, scales, places, of_place = pack(x, ids)
        hidden = x.new_empty(values.shape[0], width)
        product((values, scales), w13, hidden, of_place)
        # Rows of no expert stay unwritten, and nothing reads what becomes of them.
        out = x.new_empty(values.shape[0], height)
        product(act(hidden), w2, out, of_place)
        return total(out, places)

    return call


class DeepGemm:
    name = "deep_gemm"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return op in ("linear", EXPERTS) and dtype == "fp8" and bool(getattr(case, "T", 1))

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        on_gpu(device, "DeepGEMM")
        library("tvm_ffi")
        lib = library("deep_gemm")
        if op == EXPERTS:
            return experts_call(layer(inputs), lib.m_grouped_fp8_gemm_nt_contiguous)
        x = inputs.x
        weight = round_squares(plain(inputs.weights, x.dtype))
        rounded = compiled(round_rows, device)

        def call() -> Any:
            out = x.new_empty(x.shape[0], weight[0].shape[0])
            lib.fp8_gemm_nt(rounded(x), weight, out)
            return out

        return call

    def expected(self, op: str, case: Case, dtype: str, inputs: OpInputs) -> tuple[Any, str] | None:
        found = expected_linear(inputs) if op == "linear" else expected_experts(layer(inputs))
        return found, LEFT_OUT


PROVIDERS = (DeepGemm(),)
