"""config.json of a release (spec/inkling.md 1.1, 1.4) to our sizes and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microturn.model.checkpoint import CheckpointError, read_config
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.vision import VisionConfig

MODEL_TYPE = "inkling_mm_model"
NAME = "config.json"

DEFAULT_WINDOW = 8192
DEFAULT_ROWS = 128

ALIASES = {
    "conv_kernel": ("sconv_kernel_size", "conv_kernel_size"),
    "sliding_window": ("sliding_window_size", "sliding_window"),
    "num_experts": ("n_routed_experts", "num_local_experts"),
    "mup_multiplier": ("logits_mup_width_multiplier", "embedding_multiplier"),
    "max_positions": ("model_max_length", "max_position_embeddings"),
    "hidden_size": ("hidden_size",),
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "local_num_heads": ("swa_num_attention_heads", "num_attention_heads"),
    "local_num_kv_heads": ("swa_num_key_value_heads", "num_key_value_heads"),
    "local_head_dim": ("swa_head_dim", "head_dim"),
    "d_rel": ("d_rel",),
    "rel_extent": ("rel_extent",),
    "top_k": ("num_experts_per_tok",),
    "num_shared_experts": ("n_shared_experts",),
    "vocab_size": ("vocab_size",),
    "route_scale": ("route_scale",),
    "eps": ("rms_norm_eps",),
}
"""Our field to theirs, the first that is there: files of the release and of transformers differ."""

FRACTIONS = ("mup_multiplier", "route_scale", "eps")

FIXED: Mapping[str, object] = {
    "q_bias": False,
    "o_bias": False,
    "use_embed_norm": True,
    "use_sconv": True,
    "use_gate_bias": True,
    "use_global_scale": True,
    "norm_after_topk": True,
    "shared_expert_sink": True,
    "gate_activation": "sigmoid",
    "hidden_act": "silu",
    "final_logit_softcapping": None,
    "tie_word_embeddings": False,
}
"""What the architecture here always does; a file may leave it out."""


WIDTH = "decoder_dmodel"
"""Of a tower's rows; null where a release has no such tower."""

VISION = {1: VisionConfig((), (40,), (2,)), 4: VisionConfig()}
"""Vision towers by their number of layers; the release has 4."""


@dataclass(frozen=True)
class ReleaseConfig:
    """trunk; audio_mels, audio_bins: of the audio tower, 0 for none; vision: of the vision tower,
    None for none or one of sizes not in VISION; raw: the file as it was, empty for none.

    The trunk's global layers see `global_window` keys, where the release has no bound: the same up
    to that many rows.
    """

    trunk: TrunkConfig
    audio_mels: int = 80
    audio_bins: int = 16
    vision: VisionConfig | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds: the file it came from, or the release's fields."""
        return dict(self.raw) if self.raw else _released_fields(self)


def read_release_config(
    folder: Path, *, global_window: int = DEFAULT_WINDOW, max_rows_per_tick: int = DEFAULT_ROWS
) -> ReleaseConfig:
    """Reads config.json. Raises CheckpointError naming the file and the field: unknown
    architectures, quantised releases, missing or odd values; FileNotFoundError, OSError.
    """
    path = folder / NAME
    raw = read_config(path)
    _check_architecture(path, raw)
    text = _section(path, raw, "text_config")
    for name, wanted in FIXED.items():
        if text.get(name, wanted) != wanted:
            raise CheckpointError(
                f"{path}: text_config.{name} is {text[name]!r}; this version computes {wanted!r}"
            )
    values = {ours: _number(path, text, ours) for ours in ALIASES}
    most = int(values.pop("max_positions"))
    layers = int(values["num_layers"])
    dense, expert = _widths(path, text)
    floor = text.get("log_scaling_n_floor")
    sizes: dict[str, Any] = {
        **{k: float(v) if k in FRACTIONS else int(v) for k, v in values.items()},
        "global_layers": _global_layers(path, text, layers),
        "num_dense_layers": _dense_layers(path, text, layers),
        "dense_width": dense,
        "expert_width": expert,
        "log_floor": None if floor is None else _whole(path, text, "log_scaling_n_floor"),
        "log_alpha": float(text.get("log_scaling_alpha", 0.1)),
        "unpadded_vocab_size": int(text.get("unpadded_vocab_size") or values["vocab_size"]),
        "global_window": min(global_window, most),
        "max_rows_per_tick": max_rows_per_tick,
    }
    try:
        trunk = TrunkConfig(**sizes)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    mels = bins = 0
    if audio := _tower(path, raw, "audio_config"):
        mels, bins = (_whole(path, audio, name) for name in ("n_mel_bins", "mel_vocab_size"))
    return ReleaseConfig(trunk, mels, bins, _vision(path, raw), raw)


def _check_architecture(path: Path, raw: Mapping[str, Any]) -> None:
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind.startswith("inkling2"):
        raise CheckpointError(
            f"{path}: model_type {kind!r} is Inkling-2, another architecture (clipped queries and "
            f"keys, attention over blocks of layers), which this version does not compute; take an "
            f"Inkling checkpoint, model_type {MODEL_TYPE!r}"
        )
    if kind != MODEL_TYPE:
        raise CheckpointError(
            f"{path}: unknown architecture, model_type {kind!r}; this version reads {MODEL_TYPE!r}"
        )
    for name in ("quantization_config", "quantization"):
        for where, section in ((name, raw), (f"text_config.{name}", raw.get("text_config"))):
            if isinstance(section, Mapping) and section.get(name) is not None:
                raise CheckpointError(
                    f"{path}: {where} says that the weights are quantised, which this version "
                    f"does not read; take the bf16 release and load it as fp8"
                )


def _section(path: Path, raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = raw.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{path} has no {name}")
    return section


def _tower(path: Path, raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Empty when there is no such tower: no section, or one that gives it no width."""
    if raw.get(name) is None:
        return {}
    section = _section(path, raw, name)
    return {} if section.get(WIDTH, 0) is None else section


def _vision(path: Path, raw: Mapping[str, Any]) -> VisionConfig | None:
    section = _tower(path, raw, "vision_config")
    if not section:
        return None
    layers = section.get("n_layers", section.get("num_hidden_layers"))
    made = VISION.get(layers) if type(layers) is int else None
    sizes = tuple(section.get(k, v) for k, v in (("temporal_patch_size", 2), ("patch_size", 40)))
    return made if made is not None and made.patch[:2] == sizes else None


def _number(path: Path, text: Mapping[str, Any], ours: str) -> float:
    names = ALIASES[ours]
    name = next((n for n in names if text.get(n) is not None), None)
    if name is None:
        raise CheckpointError(f"{path}: text_config lacks {' or '.join(names)}")
    if ours not in FRACTIONS:
        return _whole(path, text, name)
    value = text[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{path}: {name} must be a number, got {value!r:.80}")
    return value


def _whole(path: Path, section: Mapping[str, Any], name: str) -> int:
    value = section.get(name)
    if type(value) is not int:
        raise CheckpointError(f"{path}: {name} must be a whole number, got {value!r:.80}")
    return value


def _widths(path: Path, text: Mapping[str, Any]) -> tuple[int, int]:
    """Of dense layers and of experts. With dense_intermediate_size, intermediate_size is the
    experts'; without, it is the dense layers'.
    """
    if text.get("dense_intermediate_size") is not None:
        dense, expert = "dense_intermediate_size", "intermediate_size"
    else:
        dense, expert = "intermediate_size", "moe_intermediate_size"
    return _whole(path, text, dense), _whole(path, text, expert)


def _global_layers(path: Path, text: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    kinds, local = text.get("layer_types"), text.get("local_layer_ids")
    if kinds is not None:
        known = ("hybrid", "hybrid_sliding")
        if not isinstance(kinds, list) or len(kinds) != layers or set(kinds) - set(known):
            raise CheckpointError(
                f"{path}: layer_types must name {layers} layers of {', '.join(known)}, "
                f"got {kinds!r:.200}"
            )
        return tuple(i for i, kind in enumerate(kinds) if kind == "hybrid")
    if local is None:  # transformers fills in the release's pattern
        return tuple(range(5, layers, 6))
    if not isinstance(local, list) or any(type(i) is not int or not 0 <= i < layers for i in local):
        raise CheckpointError(
            f"{path}: local_layer_ids must list the sliding ones of {layers} layers, "
            f"got {local!r:.200}"
        )
    return tuple(i for i in range(layers) if i not in local)


def _dense_layers(path: Path, text: Mapping[str, Any], layers: int) -> int:
    kinds = text.get("mlp_layer_types")
    if kinds is None:
        return _whole(path, text, "dense_mlp_idx")
    dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if kinds != ["dense"] * dense + ["sparse"] * (layers - dense):
        raise CheckpointError(
            f"{path}: mlp_layer_types must be dense layers, then sparse ones, {layers} in all, "
            f"got {kinds!r:.200}"
        )
    return dense


def _released_fields(config: ReleaseConfig) -> dict[str, Any]:
    trunk = config.trunk
    layers = range(trunk.num_layers)
    numbers = {
        theirs[0]: getattr(trunk, ours)
        for ours, theirs in ALIASES.items()
        if ours != "max_positions"
    }
    text = {
        "model_max_length": trunk.global_window,
        **numbers,
        "unpadded_vocab_size": trunk.unpadded_vocab_size,
        "log_scaling_n_floor": trunk.log_floor,
        "log_scaling_alpha": trunk.log_alpha,
        "local_layer_ids": [i for i in layers if i not in trunk.global_layers],
        "dense_mlp_idx": trunk.num_dense_layers,
        "dense_intermediate_size": trunk.dense_width,
        "intermediate_size": trunk.expert_width,
        **{k: v for k, v in FIXED.items() if k not in ("hidden_act", "tie_word_embeddings")},
    }
    hidden, vision = trunk.hidden_size, config.vision
    frames, edge = (vision or VisionConfig()).patch[:2]
    return {
        "architectures": ["InklingForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "text_config": text,
        "audio_config": {
            WIDTH: hidden if config.audio_mels else None,
            "n_mel_bins": config.audio_mels,
            "mel_vocab_size": config.audio_bins,
        },
        "vision_config": {
            WIDTH: hidden if vision else None,
            "patch_size": edge,
            "temporal_patch_size": frames,
            "n_channels": 3,
            "n_layers": len((vision or VisionConfig()).spatial_folds),
        },
    }
