"""The named sizes of spec/interaction.md section 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.vision import VisionConfig
from microturn.model.interaction.config import ROWS_PER_COMMIT, InteractionConfig
from microturn.model.interaction.depth import DepthConfig
from microturn.model.mimi.config import MimiConfig

# The released text vocabulary; <listen>, <delegate> and <start> take the rows its padding leaves.
RELEASED_WORDS, RELEASED_ROWS = 200_058, 201_024
# tiny_tokenizer.json beside this file.
TINY_WORDS, TINY_ROWS = 698, 704

TINY_CODEC = Path(__file__).with_name("tiny_codec.safetensors")
"""Trained weights of the codec of `interaction-tiny`, in kyutai's layout: read them with its sizes,
`load_mimi(TINY_CODEC, config=preset("interaction-tiny").codec)`.
"""
TRAINED_CODECS = {"interaction-tiny": TINY_CODEC}
"""By preset: what it speaks with from the first; the others begin at random."""
TRAINED = {"interaction-tiny": Path(__file__).with_name("tiny.safetensors")}
"""By preset: what else it has learnt (`learnt.read_learnt`)."""


# Inkling-Small (spec/inkling.md 1.1) with the three ids more; the others differ where they say so.
_SMALL = TrunkConfig(
    hidden_size=4096,
    num_layers=42,
    global_layers=tuple(range(5, 42, 6)),
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    local_num_heads=32,
    local_num_kv_heads=8,
    local_head_dim=128,
    sliding_window=512,
    global_window=8192,
    d_rel=16,
    rel_extent=1024,
    log_floor=128_000,
    log_alpha=0.1,
    num_dense_layers=2,
    dense_width=16_384,
    num_experts=256,
    top_k=6,
    num_shared_experts=2,
    expert_width=2048,
    route_scale=8.0,
    vocab_size=RELEASED_ROWS,
    unpadded_vocab_size=RELEASED_WORDS + 3,
    mup_multiplier=16.0,
    eps=1e-6,
    conv_kernel=4,
    max_rows_per_tick=ROWS_PER_COMMIT,
)


def _small() -> InteractionConfig:
    return _assemble(
        "interaction-small",
        _SMALL,
        VisionConfig(),
        MimiConfig.interaction(),
        (1024, 6, 16, 2816),
    )


def _mini() -> InteractionConfig:
    trunk = replace(
        _SMALL,
        hidden_size=1536,
        num_layers=24,
        global_layers=tuple(range(5, 24, 6)),
        **_heads(12, 4, 128),
        dense_width=6144,
        num_experts=64,
        expert_width=384,
        mup_multiplier=6.0,
    )
    return _assemble(
        "interaction-mini",
        trunk,
        VisionConfig((128, 320, 1536)),
        MimiConfig.interaction(),
        (1024, 6, 16, 2816),
    )


def _tiny() -> InteractionConfig:
    trunk = replace(
        _SMALL,
        hidden_size=256,
        num_layers=6,
        global_layers=(2, 5),
        **_heads(4, 2, 64),
        sliding_window=128,
        global_window=2048,
        rel_extent=512,
        num_dense_layers=1,
        dense_width=768,
        num_experts=16,
        top_k=2,
        expert_width=48,
        route_scale=4.0,
        vocab_size=TINY_ROWS,
        unpadded_vocab_size=TINY_WORDS + 3,
        mup_multiplier=1.0,
    )
    return _assemble(
        "interaction-tiny",
        trunk,
        VisionConfig((16, 32, 48)),
        MimiConfig.tiny(),
        (128, 1, 4, 256),
        tokenizer="tiny_tokenizer.json",
    )


def _heads(num_heads: int, num_kv_heads: int, head_dim: int) -> dict[str, int]:
    """The same heads on global and on sliding layers."""
    return {
        f"{layers}{name}": value
        for layers in ("", "local_")
        for name, value in (
            ("num_heads", num_heads),
            ("num_kv_heads", num_kv_heads),
            ("head_dim", head_dim),
        )
    }


def _assemble(
    name: str,
    trunk: TrunkConfig,
    vision: VisionConfig,
    codec: MimiConfig,
    depth: tuple[int, int, int, int],
    tokenizer: str | None = None,
) -> InteractionConfig:
    """depth: width, layers, heads and gate width of the depth head."""
    depth_size, num_layers, num_heads, gate_size = depth
    start = trunk.unpadded_vocab_size - 1
    return InteractionConfig(
        name=name,
        trunk=trunk,
        depth=DepthConfig(
            hidden_size=trunk.hidden_size,
            depth_size=depth_size,
            num_layers=num_layers,
            num_heads=num_heads,
            gate_size=gate_size,
            num_codebooks=codec.num_codebooks,
            codebook_size=codec.codebook_size,
            text_vocab_size=trunk.unpadded_vocab_size,
            eps=1e-6,
        ),
        codec=codec,
        listen_id=start - 2,
        delegate_id=start - 1,
        start_id=start,
        vision=vision,
        tokenizer=tokenizer,
    )


PRESETS: dict[str, Callable[[], InteractionConfig]] = {
    "interaction-tiny": cache(_tiny),
    "interaction-mini": cache(_mini),
    "interaction-small": cache(_small),
}


def preset(name: str) -> InteractionConfig:
    """The preset of that name. Raises ValueError listing the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()
