"""The layout of transformers' Mimi (spec/moshi-mimi.md 3.1): its names on disk, its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microturn.model.checkpoint import (
    CheckpointError,
    Source,
    TensorInfo,
    Wanted,
    check_fit,
)
from microturn.model.mimi.config import MimiConfig
from microturn.model.mimi.names import kyutai_shapes

MODEL_TYPE = "mimi"
KYUTAI_MARK, HUGGING_FACE_MARK = "encoder.model.0.conv.conv.weight", "encoder.layers.0.conv.weight"
"""A tensor that only that layout has."""

RENAMED = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"^(down|up)sample\.conv(tr)?\.conv(tr)?\.conv(tr)?\.", r"\1sample.conv."),
    (r"\.conv(tr)?\.conv(tr)?\.(weight|bias)$", r".conv.\3"),
    (r"_transformer\.transformer\.", "_transformer."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"^quantizer\.rvq_first\.", "quantizer.semantic_residual_vector_quantizer."),
    (r"^quantizer\.rvq_rest\.", "quantizer.acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.", ".layers."),
    (r"\._codebook\._initialized$", ".codebook.initialized"),
    (r"\._codebook\.cluster_usage$", ".codebook.cluster_usage"),
    (r"\._codebook\.embedding_sum$", ".codebook.embed_sum"),
)
"""kyutai's names to theirs, rule after rule."""

IN_PROJ = ".in_proj_weight"
PARTS = ("q", "k", "v")

SIZES = {
    "sampling_rate": "sample_rate",
    "num_filters": "n_filters",
    "upsampling_ratios": "ratios",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "compress": "compress",
    "hidden_size": "dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ff_dim",
    "sliding_window": "context",
    "num_quantizers": "num_codebooks",
    "num_semantic_quantizers": "num_semantic",
    "codebook_size": "codebook_size",
    "codebook_dim": "codebook_dim",
}
"""Their field to ours; a field left out has the value of the released codec."""

FIXED: Mapping[str, object] = {
    "audio_channels": 1,
    "num_residual_layers": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "attention_bias": False,
}


def hugging_face_name(kyutai: str) -> str:
    """Their name of a tensor that kyutai's released files have under this one."""
    for pattern, theirs in RENAMED:
        kyutai = re.sub(pattern, theirs, kyutai)
    return kyutai


def hugging_face_shapes(config: MimiConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a file of this configuration."""
    shapes = {}
    for name, shape in kyutai_shapes(config).items():
        for part in _parts(name):
            shapes[part] = (config.dim, config.dim) if name.endswith(IN_PROJ) else shape
    return shapes


class AsKyutai:
    """A source in the Hugging Face layout, seen under kyutai's names.

    in_proj is put together from q, k and v, its q and k rows in interleaved order. Books past
    num_codebooks are left out. Raises CheckpointError when the tensors do not fit.
    """

    def __init__(self, source: Source, config: MimiConfig) -> None:
        wanted = hugging_face_shapes(config)
        check_fit(
            source,
            {name: Wanted(shape) for name, shape in wanted.items()},
            lambda name: name in wanted or not _is_book(name),
        )
        self._source, self._config, self.where = source, config, source.where
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, torch.float32, shape)
            for name, shape in kyutai_shapes(config).items()
        }

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        parts = [self._source.rows(part) for part in _parts(name)]
        if len(parts) > 1:
            heads = self._config.num_heads
            q, k, v = (part.float() for part in parts)
            parts = [torch.cat([interleaved(q, heads), interleaved(k, heads), v])]
        return parts[0][start:stop]


def from_kyutai(tensors: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Tensors under kyutai's names to theirs."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        values = [tensor]
        if name.endswith(IN_PROJ):
            q, k, v = tensor.chunk(3)
            values = [halved(q, num_heads), halved(k, num_heads), v]
        theirs.update(zip(_parts(name), values, strict=True))
    return theirs


def interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of a head in half-rotation order (all first, then all second halves of the pairs that
    RoPE turns) to pair after pair.
    """
    return rows.view(num_heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def halved(rows: Tensor, num_heads: int) -> Tensor:
    """The inverse of `interleaved`."""
    return rows.reshape(num_heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def read_sizes(path: Path, raw: Mapping[str, Any]) -> MimiConfig:
    """Of a config.json. Raises CheckpointError naming the file and the field."""
    dim = raw.get("hidden_size", MimiConfig.dim)
    heads = raw.get("num_attention_heads", MimiConfig.num_heads)
    fixed = {
        **FIXED,
        "upsample_groups": dim,
        "num_key_value_heads": heads,
        "vector_quantization_hidden_dimension": raw.get("codebook_dim", MimiConfig.codebook_dim),
    }
    if (
        isinstance(dim, int)
        and isinstance(heads, int)
        and heads
        and raw.get("head_dim") is not None
    ):
        fixed["head_dim"] = dim // heads
    for name, wanted in fixed.items():
        if raw.get(name, wanted) != wanted:
            raise CheckpointError(
                f"{path}: {name} is {raw[name]!r}; this version computes {wanted!r}"
            )
    sizes: dict[str, Any] = {
        ours: raw[theirs] for theirs, ours in SIZES.items() if raw.get(theirs) is not None
    }
    for ours, value in sizes.items():
        values = value if ours == "ratios" and isinstance(value, list) else [value]
        if any(type(v) is not int for v in values):
            raise CheckpointError(f"{path}: the codec's {ours} cannot be {value!r:.80}")
    rope = raw.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else raw
    try:
        sizes["rope_theta"] = float(rope.get("rope_theta", MimiConfig.rope_theta))
        return MimiConfig(**sizes)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def sizes_dict(config: MimiConfig) -> dict[str, Any]:
    """What config.json holds for a codec of these sizes."""
    return {
        "architectures": ["MimiModel"],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        **FIXED,
        "upsampling_ratios": list(config.ratios),
        "upsample_groups": config.dim,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "vector_quantization_hidden_dimension": config.codebook_dim,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "dtype": "float32",
    }


def _parts(kyutai: str) -> list[str]:
    """Their tensors of one of kyutai's: three for a fused projection."""
    if not kyutai.endswith(IN_PROJ):
        return [hugging_face_name(kyutai)]
    attention = hugging_face_name(kyutai.removesuffix(IN_PROJ))
    return [f"{attention}.{part}_proj.weight" for part in PARTS]


def _is_book(name: str) -> bool:
    """One of any acoustic book's tensors: a codec may run on fewer than its file has."""
    prefix = "quantizer.acoustic_residual_vector_quantizer.layers."
    index = name.removeprefix(prefix).partition(".codebook.")[0]
    return name.startswith(prefix) and index.isdecimal()
