"""Names of the released tensors (spec/inkling.md 1.6) and where their values go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microturn.model.inkling.audio import AudioTower
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.trunk import Trunk

MOST_NAMED = 8
"""Tensors an error names before it says how many more there are."""


@dataclass(frozen=True)
class Released:
    """One released tensor: its name after the prefix, its shape, and the parameter that takes it.

    Rows start : start + rows of the parameter take it, in the same order of values; rows None: the
    whole parameter.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    start: int = 0
    rows: int | None = None


def trunk_tensors(config: TrunkConfig) -> tuple[Released, ...]:
    """Everything under `model.llm.`."""
    hidden, table = config.hidden_size, (config.vocab_size, config.hidden_size)
    return (
        Released("embed.weight", table, "embedding"),
        Released("embed_norm.weight", (hidden,), "embed_norm.gain"),
        *(entry for i in range(config.num_layers) for entry in _layer(config, i)),
        Released("norm.weight", (hidden,), "norm.gain"),
        Released("unembed.weight", table, "unembedding"),
    )


def audio_tensors(tower: AudioTower) -> tuple[Released, ...]:
    """Everything under `model.audio.`."""
    rows, hidden = tower.table.shape
    return (
        Released("encoder.weight", (rows, hidden), "table"),
        Released("final_norm.weight", (hidden,), "norm.gain"),
    )


def _layer(config: TrunkConfig, layer: int) -> Iterator[Released]:
    name = f"layers.{layer}"
    hidden, taps = config.hidden_size, config.conv_kernel
    sizes = config.attention(layer)
    head_dim = sizes.head_dim
    q, kv, r = (
        n * size
        for n, size in (
            (sizes.num_heads, head_dim),
            (sizes.num_kv_heads, head_dim),
            (sizes.num_heads, config.d_rel),
        )
    )
    for norm in ("attn_norm", "mlp_norm"):
        yield Released(f"{name}.{norm}.weight", (hidden,), f"{name}.{norm}.gain")
    start = 0
    for projection, width in (("wq_du", q), ("wk_dv", kv), ("wv_dv", kv), ("wr_du", r)):
        source = f"{name}.attn.{projection}.weight"
        yield Released(source, (width, hidden), f"{name}.attn.qkvr", start, width)
        start += width
    yield Released(f"{name}.attn.wo_ud.weight", (hidden, q), f"{name}.attn.o")
    for norm in ("q_norm", "k_norm"):
        yield Released(f"{name}.attn.{norm}.weight", (head_dim,), f"{name}.attn.{norm}.gain")
    for start, conv in ((0, "k_sconv"), (kv, "v_sconv")):
        source = f"{name}.attn.{conv}.weight"
        yield Released(source, (kv, 1, taps), f"{name}.attn.kv_conv", start, kv)
    yield Released(
        f"{name}.attn.rel_logits_proj.proj", (config.d_rel, sizes.extent), f"{name}.attn.rel_bank"
    )
    for source, ours in (("attn_sconv", "attn_conv"), ("mlp_sconv", "mlp_conv")):
        yield Released(f"{name}.{source}.weight", (hidden, 1, taps), f"{name}.{ours}")
    dense = layer < config.num_dense_layers
    for source, shape, ours in _dense(config) if dense else _experts(config):
        yield Released(f"{name}.mlp.{source}", shape, f"{name}.mlp.{ours}")


_Entries = Sequence[tuple[str, tuple[int, ...], str]]


def _dense(config: TrunkConfig) -> _Entries:
    hidden, width = config.hidden_size, config.dense_width
    return (
        ("w13_dn.weight", (2 * width, hidden), "w13"),
        ("w2_md.weight", (hidden, width), "w2"),
        ("global_scale", (1,), "global_scale"),
    )


def _experts(config: TrunkConfig) -> _Entries:
    hidden, width = config.hidden_size, config.expert_width
    experts, shared = config.num_experts, config.num_shared_experts
    return (
        ("gate.weight", (experts + shared, hidden), "gate"),
        ("gate.bias", (experts,), "bias"),
        ("gate.global_scale", (1,), "global_scale"),
        ("experts.w13_weight", (experts, 2 * width, hidden), "w13"),
        ("experts.w2_weight", (experts, hidden, width), "w2"),
        ("shared_experts.shared_w13_weight", (shared, 2 * width, hidden), "shared_w13"),
        ("shared_experts.shared_w2_weight", (shared, hidden, width), "shared_w2"),
    )


def load_released(trunk: Trunk, tensors: Mapping[str, Tensor], prefix: str = "model.llm.") -> None:
    """Copies released tensors into `trunk`, each cast to the dtype of its parameter.

    Names that do not begin with `prefix` belong to other parts and are left alone.
    Raises ValueError naming missing, extra and mis-shaped tensors with their shapes; nothing is
    copied then.
    """
    _load(trunk, trunk_tensors(trunk.config), tensors, prefix)


def load_released_audio(
    tower: AudioTower, tensors: Mapping[str, Tensor], prefix: str = "model.audio."
) -> None:
    """The same for the audio tower."""
    _load(tower, audio_tensors(tower), tensors, prefix)


def _load(
    module: nn.Module, table: Sequence[Released], tensors: Mapping[str, Tensor], prefix: str
) -> None:
    wanted = {prefix + entry.name: entry for entry in table}
    _check(wanted, {k: v for k, v in tensors.items() if k.startswith(prefix)})
    ours = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, entry in wanted.items():
            target = ours[entry.parameter].detach()
            if entry.rows is not None:
                target = target.narrow(0, entry.start, entry.rows)
            target.copy_(tensors[name].reshape(target.shape))


def _check(wanted: Mapping[str, Released], given: Mapping[str, Tensor]) -> None:
    problems = [
        f"{name} is missing, wanted {list(entry.shape)}"
        for name, entry in wanted.items()
        if name not in given
    ]
    problems += [
        f"{name} {list(tensor.shape)} is not part of this model"
        for name, tensor in given.items()
        if name not in wanted
    ]
    problems += [
        f"{name} is {list(given[name].shape)}, wanted {list(entry.shape)}"
        for name, entry in wanted.items()
        if name in given and tuple(given[name].shape) != entry.shape
    ]
    if problems:
        named, more = problems[:MOST_NAMED], len(problems) - MOST_NAMED
        text = "; ".join(named) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"the checkpoint does not fit: {text}")
