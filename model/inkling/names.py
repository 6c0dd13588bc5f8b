"""Names of the released tensors (spec/inkling.md 1.6) and where their values go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from microturn.model.checkpoint import Slot, Source, Wanted, as_source, check_fit, stream
from microturn.model.checkpoint.quantization import Kind
from microturn.model.inkling.audio import AudioTower
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.trunk import Trunk


@dataclass(frozen=True)
class Released:
    """One released tensor: its name after the prefix, its shape, and the parameter that takes it.

    Rows start : start + rows of the parameter take it, in the same order of values; rows None: the
    whole parameter. kind: what its storage as bf16 or fp8 may round.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    start: int = 0
    rows: int | None = None
    kind: Kind = "plain"


def trunk_tensors(config: TrunkConfig) -> tuple[Released, ...]:
    """Everything under `model.llm.`."""
    hidden, table = config.hidden_size, (config.vocab_size, config.hidden_size)
    return (
        Released("embed.weight", table, "embedding"),
        Released("embed_norm.weight", (hidden,), "embed_norm.gain"),
        *(entry for i in range(config.num_layers) for entry in _layer(config, i)),
        Released("norm.weight", (hidden,), "norm.gain"),
        Released("unembed.weight", table, "unembedding", kind="matrix"),
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
        yield Released(source, (width, hidden), f"{name}.attn.qkvr", start, width, "matrix")
        start += width
    yield Released(f"{name}.attn.wo_ud.weight", (hidden, q), f"{name}.attn.o", kind="matrix")
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
    for source, shape, ours, kind in _dense(config) if dense else _experts(config):
        yield Released(f"{name}.mlp.{source}", shape, f"{name}.mlp.{ours}", kind=kind)


_Entries = Sequence[tuple[str, tuple[int, ...], str, Kind]]


def _dense(config: TrunkConfig) -> _Entries:
    hidden, width = config.hidden_size, config.dense_width
    return (
        ("w13_dn.weight", (2 * width, hidden), "w13", "matrix"),
        ("w2_md.weight", (hidden, width), "w2", "matrix"),
        ("global_scale", (1,), "global_scale", "plain"),
    )


def _experts(config: TrunkConfig) -> _Entries:
    hidden, width = config.hidden_size, config.expert_width
    experts, shared = config.num_experts, config.num_shared_experts
    return (
        ("gate.weight", (experts + shared, hidden), "gate", "plain"),
        ("gate.bias", (experts,), "bias", "scalar"),
        ("gate.global_scale", (1,), "global_scale", "scalar"),
        ("experts.w13_weight", (experts, 2 * width, hidden), "w13", "matrix"),
        ("experts.w2_weight", (experts, hidden, width), "w2", "matrix"),
        ("shared_experts.shared_w13_weight", (shared, 2 * width, hidden), "shared_w13", "matrix"),
        ("shared_experts.shared_w2_weight", (shared, hidden, width), "shared_w2", "matrix"),
    )


def load_released(
    trunk: Trunk, tensors: Source | Mapping[str, Tensor], prefix: str = "model.llm."
) -> None:
    """Copies released tensors into `trunk`, each cast to the dtype of its parameter.

    Names that do not begin with `prefix` belong to other parts and are left alone.
    Raises CheckpointError naming missing, extra and mis-shaped tensors with their shapes; nothing
    is copied then.
    """
    _load(trunk, trunk_tensors(trunk.config), tensors, prefix)


def load_released_audio(
    tower: AudioTower, tensors: Source | Mapping[str, Tensor], prefix: str = "model.audio."
) -> None:
    """The same for the audio tower."""
    _load(tower, audio_tensors(tower), tensors, prefix)


def wanted(table: Sequence[Released], prefix: str) -> dict[str, Wanted]:
    """What a checkpoint must hold for this table."""
    return {prefix + entry.name: Wanted(entry.shape) for entry in table}


def slots(module: nn.Module, table: Sequence[Released], prefix: str) -> list[Slot]:
    """Where each tensor of the table goes in `module`."""
    return [Slot(prefix + entry.name, place(module, entry), entry.kind) for entry in table]


def place(module: nn.Module, entry: Released) -> Tensor:
    """The values of a released tensor inside `module`: a view, of as many rows."""
    owner, _, name = entry.parameter.rpartition(".")
    values = getattr(module.get_submodule(owner), name).detach()
    if entry.rows is not None:
        values = values.narrow(0, entry.start, entry.rows)
    return values  # type: ignore[no-any-return]


def _load(
    module: nn.Module,
    table: Sequence[Released],
    tensors: Source | Mapping[str, Tensor],
    prefix: str,
) -> None:
    source = as_source(tensors)
    check_fit(source, wanted(table, prefix), lambda name: name.startswith(prefix))
    stream(source, slots(module, table, prefix))
