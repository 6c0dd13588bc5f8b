"""Each term of the trunk's arithmetic, left out or misplaced: the comparison with transformers
must see it, in whole sequences and in streams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import microturn.model.inkling.attention as attention_module
import microturn.model.inkling.mlp as mlp_module
from microturn.kernels.qkvr_prologue import QKVRState, QKVRWeights
from microturn.kernels.rms_norm import rms_norm
from microturn.kernels.router import RouterWeights, Routing, router
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv import short_conv
from microturn.kernels.streaming_attention import AttentionInputs, streaming_attention
from microturn.model.inkling.attention import Attention
from microturn.model.inkling.trunk import Trunk
from oracles.inkling import BAR, FEW, Released
from oracles.streams import feed, fresh, whole

pytestmark = pytest.mark.oracle

SEEN = 10 * BAR
CUTS = [1, 7, 2, 20, 1, 1, 28]
TOKENS = sum(CUTS)

Drop = Callable[[Trunk, pytest.MonkeyPatch], Trunk | None]


class Oracle(NamedTuple):
    released: Released
    tensors: dict[str, Tensor]
    ids: Tensor
    logits: Tensor


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    torch.manual_seed(3)
    released = Released(FEW)
    ids = torch.randint(0, FEW.unpadded_vocab_size - 1, (TOKENS,))
    return Oracle(released, released.tensors(), ids, released.answer(ids).logits)


@torch.no_grad()
def errors(oracle: Oracle, trunk: Trunk) -> tuple[float, float]:
    """Of the whole sequence, of the stream."""
    x = trunk.embed(oracle.ids)
    hidden = (whole(trunk, [x])[0], feed(trunk, fresh(trunk, 1), x, CUTS))
    first, second = (float((trunk.logits(h) - oracle.logits).abs().max()) for h in hidden)
    return first, second


def attentions(trunk: Trunk, *, sliding: bool | None = None) -> list[Attention]:
    return [
        module
        for module in trunk.modules()
        if isinstance(module, Attention) and sliding in (None, not module.sizes.pages)
    ]


def zero(*parts: str) -> Drop:
    def drop(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
        found = [t for name, t in trunk.state_dict().items() if name.endswith(parts)]
        assert found
        for tensor in found:
            tensor.zero_()

    return drop


def ones(part: str, module: str) -> Drop:
    def drop(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
        names = [n for n, m in trunk.named_modules() if type(m).__name__ == module]
        assert names
        for name in names:
            trunk.get_parameter(f"{name}.{part}").data.fill_(1)

    return drop


def identity(name: str) -> Drop:
    """Norms called `name` pass through what they get: an eps so large that nothing else counts."""

    def drop(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
        norms = [m for m in (getattr(m, name, None) for m in trunk.modules()) if m is not None]
        assert norms
        for norm in norms:
            norm.eps = 1e12
            norm.gain.fill_(1e6)

    return drop


def other_config(**changes: Any) -> Drop:
    """The same weights in a model of another config."""

    def drop(trunk: Trunk, patch: pytest.MonkeyPatch) -> Trunk:
        other = Trunk(dataclasses.replace(trunk.config, **changes))
        other.load_state_dict(trunk.state_dict())
        return other

    return drop


def clamped_bias(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
    """Past the extent the bias stays what it was at its end."""
    for attention in attentions(trunk, sliding=False):
        bank = attention.rel_bank
        rest = bank[:, -1:].expand(-1, TOKENS - bank.shape[1])
        attention.rel_bank = nn.Parameter(torch.cat([bank, rest], 1), requires_grad=False)


def shorter_bias(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
    """The extent ends one key too early."""
    for attention in attentions(trunk, sliding=False):
        attention.rel_bank = nn.Parameter(attention.rel_bank[:, :-1], requires_grad=False)


def window(change: int) -> Drop:
    def drop(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
        for attention in attentions(trunk, sliding=True):
            window = attention.sizes.window + change
            attention.sizes = dataclasses.replace(attention.sizes, window=window)

    return drop


def without_inner_residual(*parts: str) -> Drop:
    """A convolution adds its input to its sum; one less in the newest tap takes that away."""

    def drop(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
        found = [t for name, t in trunk.state_dict().items() if name.endswith(parts)]
        assert found
        for taps in found:
            taps[:, -1] -= 1

    return drop


def taps_reversed(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
    for name, tensor in trunk.state_dict().items():
        if name.endswith("conv"):
            tensor.copy_(tensor.flip(-1))


def convolution_after_the_head_norm(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
    """k is normed by head first and convolved then; v as it should be."""

    def changed(
        x: Tensor, weights: QKVRWeights, state: QKVRState | None, rows: RowBatch
    ) -> AttentionInputs:
        q, kv, r = x.split_with_sizes(list(weights.widths), dim=1)
        k, v = kv.chunk(2, 1)
        heads = (-1, weights.num_kv_heads, weights.head_dim)
        both = torch.cat([rms_norm(k.reshape(heads), weights.k_norm).flatten(1), v], 1)
        ring = None if state is None else state.conv
        k, v = short_conv(both, weights.taps, ring, rows).chunk(2, 1)
        return AttentionInputs(
            rms_norm(q.reshape(-1, weights.num_heads, weights.head_dim), weights.q_norm),
            k.reshape(heads),
            v.reshape(heads),
            r.reshape(-1, weights.num_heads, weights.d_rel),
        )

    patch.setattr(attention_module, "qkvr_prologue", changed)


def routing(change: Callable[[Tensor, RouterWeights, Routing], Routing]) -> Drop:
    def drop(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
        def changed(x: Tensor, weights: RouterWeights, *rest: Any) -> Routing:
            return change(x, weights, router(x, weights, *rest))

        patch.setattr(mlp_module, "router", changed)

    return drop


def bias_in_the_weights(x: Tensor, weights: RouterWeights, made: Routing) -> Routing:
    """The weights are made of the scores that experts were chosen by."""
    scores = (x @ weights.weight.T).sigmoid()
    experts = weights.num_experts
    chosen = (scores[:, :experts] + weights.bias).gather(1, made.topk_ids.long())
    share = torch.cat([chosen, scores[:, experts:]], 1)
    share = share / share.sum(1, keepdim=True) * weights.scale
    return Routing(made.topk_ids, share[:, : weights.top_k], share[:, weights.top_k :])


def normalised_apart(x: Tensor, weights: RouterWeights, made: Routing) -> Routing:
    """Routed and shared experts each share out the whole scale among themselves."""
    routed, shared = (
        w / w.sum(1, keepdim=True) * weights.scale for w in (made.topk_weights, made.shared_weights)
    )
    return Routing(made.topk_ids, routed, shared)


def without_shared_experts(x: Tensor, weights: RouterWeights, made: Routing) -> Routing:
    return dataclasses.replace(made, shared_weights=torch.zeros_like(made.shared_weights))


def attention_weights(change: Callable[[Any], dict[str, Any]]) -> Drop:
    def drop(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
        def changed(x: Any, weights: Any, *rest: Any) -> Tensor:
            return streaming_attention(x, dataclasses.replace(weights, **change(weights)), *rest)

        patch.setattr(attention_module, "streaming_attention", changed)

    return drop


def heads_interleaved(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
    """Query head h reads kv head h % Hkv instead of h // (H / Hkv)."""

    def changed(x: Any, weights: Any, state: Any, rows: RowBatch) -> Tensor:
        heads, kv_heads = x.q.shape[1], (state.k.data.shape[2] if x.k is None else x.k.shape[1])
        order = torch.arange(heads).view(-1, kv_heads).T.reshape(-1)
        x = dataclasses.replace(x, q=x.q[:, order], r=x.r[:, order])
        y = streaming_attention(x, weights, state, rows)
        return y[:, order.argsort()]

    patch.setattr(attention_module, "streaming_attention", changed)


def gate_and_up_in_halves(trunk: Trunk, patch: pytest.MonkeyPatch) -> None:
    """The rows of w13 taken for all of the gate, then all of up."""
    for name, tensor in trunk.state_dict().items():
        if name.endswith("w13"):
            pairs = tensor.shape[-2] // 2
            tensor.copy_(tensor.unflatten(-2, (2, pairs)).transpose(-3, -2).flatten(-3, -2))


TERMS: dict[str, Drop] = {
    "relative bias": zero("rel_bank"),
    "zero bias past the extent": clamped_bias,
    "the extent's last key": shorter_bias,
    "the inner residual of the k and v convolutions": without_inner_residual("kv_conv"),
    "the inner residual of the residual convolutions": without_inner_residual(
        "attn_conv", "mlp_conv"
    ),
    "the k and v convolutions": zero("kv_conv"),
    "the residual convolutions": zero("attn_conv", "mlp_conv"),
    "the order of taps": taps_reversed,
    "convolution before the head norm": convolution_after_the_head_norm,
    "head norm of q": identity("q_norm"),
    "head norm of k": identity("k_norm"),
    "attention norm": identity("attn_norm"),
    "mlp norm": identity("mlp_norm"),
    "embedding norm": identity("embed_norm"),
    "final norm": identity("norm"),
    "selection bias": zero("mlp.bias"),
    "selection bias out of the weights": routing(bias_in_the_weights),
    "normalisation shared by routed and shared experts": routing(normalised_apart),
    "shared experts": routing(without_shared_experts),
    "route scale": other_config(route_scale=1.0),
    "global scale of the experts": ones("global_scale", "ExpertsMLP"),
    "global scale of the dense layer": ones("global_scale", "DenseMLP"),
    "log scaling": other_config(log_floor=None),
    "the slope of log scaling": other_config(log_alpha=0.2),
    "the floor of log scaling": other_config(log_floor=17),
    "the window's last key": window(-1),
    "the window's end": window(1),
    "1 / d, not 1 / sqrt(d)": attention_weights(lambda w: {"scale": w.scale**0.5}),
    "heads in groups": heads_interleaved,
    "w13 interleaved": gate_and_up_in_halves,
    "muP": other_config(mup_multiplier=1.0),
}


def test_with_every_term_in_place_it_matches(oracle: Oracle) -> None:
    assert max(errors(oracle, oracle.released.trunk(oracle.tensors))) <= BAR


@pytest.mark.parametrize("term", TERMS)
def test_without_it_the_comparison_fails(
    oracle: Oracle, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = oracle.released.trunk(oracle.tensors)
    with torch.no_grad():
        trunk = TERMS[term](trunk, monkeypatch) or trunk
    assert min(errors(oracle, trunk)) > SEEN


def test_log_scaling_is_nothing_up_to_its_floor(oracle: Oracle) -> None:
    trunk = oracle.released.trunk(oracle.tensors, dataclasses.replace(FEW, log_floor=None))
    floor = FEW.log_floor
    before = oracle._replace(ids=oracle.ids[:floor], logits=oracle.logits[:floor])
    with torch.no_grad():
        logits = trunk.logits(whole(trunk, [trunk.embed(before.ids)])[0])
    assert float((logits - before.logits).abs().max()) <= BAR
