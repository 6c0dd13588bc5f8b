"""Attention by torch: SDPA without and with the relative bias, FlexAttention with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.bench.peers.common import compiled
from microturn.bench.peers.kept import OP, Kept, kept, without_bias
from microturn.bench.providers.base import Call
from microturn.kernels.registry import Case, OpInputs
from microturn.kernels.streaming_attention.reference import log_scale

DTYPES = ("fp32", "bf16")


def _turned(x: Tensor, places: Tensor, theta: float) -> Tensor:
    """Interleaved pairs turned, x [B, n, H, D], places [B, n]."""
    d = x.shape[-1]
    steps = torch.arange(0, d, 2, dtype=torch.float64, device=x.device)
    angles = places[..., None, None] * theta ** (-steps / d)
    cos, sin = angles.cos().float(), angles.sin().float()
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).to(x.dtype)


class _Rows:
    """What a call does before it attends: turn and append."""

    def __init__(self, of: Kept) -> None:
        self.of = of
        self.places = of.positions()
        self.lines = torch.arange(of.q.shape[0], device=of.q.device)[:, None]
        self.absolute = self.places + of.first[:, None]

    def __call__(self) -> Tensor:
        """Queries [B, H, n, D]; the new keys and values are in `of` afterwards."""
        of = self.of
        q = of.q
        if of.rope_theta is not None:
            q = _turned(q, self.absolute, of.rope_theta)
        if of.new is not None:
            k, v = of.new
            if of.rope_theta is not None:
                k = _turned(k, self.absolute, of.rope_theta)
            of.k[self.lines, self.places] = k.to(of.k.dtype)
            of.v[self.lines, self.places] = v.to(of.v.dtype)
        return q.transpose(1, 2)


class _Attention:
    """Whatever `call` makes of what is kept."""

    name: str
    bias: bool

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        if op != OP or dtype not in DTYPES or not getattr(case, "T", 1):
            return False
        return not self.bias or bool(getattr(case, "extent", 0))

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        return self.call(inputs)

    def call(self, inputs: OpInputs) -> Call:
        raise NotImplementedError


class Sdpa(_Attention):
    """No mask for one row that sees all keys kept for it, a causal one for several rows, else a
    mask of booleans.
    """

    name, bias = "torch_sdpa", False

    def call(self, inputs: OpInputs) -> Call:
        from torch.nn.attention.bias import causal_lower_right

        of = kept(inputs)
        rows, n, length = _Rows(of), of.q.shape[1], of.k.shape[1]
        mask: Any = None
        whole = bool((of.total == length).all()) and not of.sliding
        if whole and n > 1:
            mask = causal_lower_right(n, length)
        elif not whole:
            mask = ~of.hidden()[:, None]
        grouped = of.q.shape[2] != of.k.shape[2]
        k, v = of.k.transpose(1, 2), of.v.transpose(1, 2)

        def call() -> Any:
            y = F.scaled_dot_product_attention(
                rows(), k, v, attn_mask=mask, scale=of.scale, enable_gqa=grouped
            )
            return of.output(y.transpose(1, 2))

        return call

    def expected(self, op: str, case: Case, dtype: str, inputs: OpInputs) -> tuple[Any, str] | None:
        return without_bias(inputs)


def _bias(inputs: OpInputs) -> tuple[Tensor, Tensor, int]:
    """r [B, H, n, d_rel], the bank within the window [d_rel, extent], extent."""
    weights, rows = inputs.weights, inputs.rows
    r = inputs.x.r
    r = r.view(len(rows.lines), -1, *r.shape[1:]).transpose(1, 2).contiguous()
    extent = min(weights.rel_bank.shape[1], weights.window)
    return r, weights.rel_bank[:, :extent].contiguous(), extent


class SdpaBias(_Attention):
    """The bias of every key is written out, as SDPA's mask wants it."""

    name, bias = "torch_sdpa_bias", True

    def call(self, inputs: OpInputs) -> Call:
        of = kept(inputs)
        r, bank, extent = _bias(inputs)
        tau = log_scale(inputs.rows.positions, inputs.weights)
        if tau is not None:
            r = r * tau.view(r.shape[0], 1, -1, 1).to(r.dtype)
        rows, distance = _Rows(of), of.distances()[:, None]
        reach = ((distance >= 0) & (distance < extent)).expand(-1, r.shape[1], -1, -1)
        index = distance.clamp(0, extent - 1).expand(reach.shape)
        hidden = of.hidden()[:, None]
        grouped = of.q.shape[2] != of.k.shape[2]
        k, v = of.k.transpose(1, 2), of.v.transpose(1, 2)

        def bias(r: Tensor) -> Tensor:
            by_distance = torch.matmul(r, bank)
            found = torch.where(reach, by_distance.gather(-1, index), 0.0)
            return found.masked_fill(hidden, float("-inf"))

        make = compiled(bias, r.device)

        def call() -> Any:
            y = F.scaled_dot_product_attention(
                rows(), k, v, attn_mask=make(r).to(k.dtype), scale=of.scale, enable_gqa=grouped
            )
            return of.output(y.transpose(1, 2))

        return call


class Flex(_Attention):
    """A score_mod looks the bias up by distance; r . bank is a matmul of the call."""

    name, bias = "torch_flex", False

    def call(self, inputs: OpInputs) -> Call:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        of = kept(inputs, scaled_queries=False)
        device, n, length = of.q.device, of.q.shape[1], of.k.shape[1]
        rows, before = _Rows(of), of.total.long() - n
        window = of.window

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            distance = before[b] + i - j
            return (distance >= 0) & (distance < window)

        mask = create_block_mask(visible, len(before), None, n, length, device=str(device))
        tau = log_scale(inputs.rows.positions, inputs.weights)
        slope = None if tau is None else tau.view(-1, n)
        r, bank, extent = _bias(inputs) if inputs.x.r is not None else (None, None, 0)
        grouped = of.q.shape[2] != of.k.shape[2]
        k, v = of.k.transpose(1, 2), of.v.transpose(1, 2)
        attend = compiled(flex_attention, device)

        def call() -> Any:
            rel = None if r is None or bank is None else torch.matmul(r, bank)

            def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                if rel is not None:
                    distance = before[b] + i - j
                    found = rel[b, h, i, distance.clamp(0, extent - 1)]
                    s = s + torch.where(distance < extent, found, 0.0)
                return s if slope is None else s * slope[b, i]

            y = attend(
                rows(),
                k,
                v,
                score_mod=None if rel is None and slope is None else score,
                block_mask=mask,
                scale=of.scale,
                enable_gqa=grouped,
            )
            return of.output(y.transpose(1, 2))

        return call


PROVIDERS = (Sdpa(), SdpaBias(), Flex())
