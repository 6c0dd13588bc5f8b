"""Sizes of an Inkling backbone."""

from __future__ import annotations

from dataclasses import dataclass

from microturn.kernels.tiles import WIDTH

CHECKED_APART = frozenset(
    (
        *("global_layers", "log_floor", "log_alpha", "num_dense_layers", "num_shared_experts"),
        *("num_sink_tokens", "local_num_sink_tokens"),
    )
)


@dataclass(frozen=True)
class TrunkConfig:
    """One backbone (spec/inkling.md 1.1 has the released values).

    global_layers   the layers that see `global_window` keys; the others see `sliding_window`
    local_*         head counts and size of the sliding layers
    d_rel, rel_extent   rank of the relative bias and how far back it reaches on global layers; on
                    sliding layers it reaches over the window
    log_floor, log_alpha   log scaling of global layers; log_floor None: none
    dense_width     MLP width of the first `num_dense_layers` layers
    expert_width    MLP width of routed and shared experts of the others
    route_scale     what the expert weights of a row sum to, times each layer's learned scale
    vocab_size      rows of the embedding and the unembedding; logits end at `unpadded_vocab_size`
    mup_multiplier  the final hidden state is divided by it before the unembedding
    conv_kernel     taps of the four short convolutions of a layer
    max_rows_per_tick   rows that a session may write before it commits
    num_sink_tokens, local_num_sink_tokens   first keys of a session that global and sliding layers
                    see beside their window, once they are behind it; released models have none

    Raises ValueError naming the field that does not fit.
    """

    hidden_size: int
    num_layers: int
    global_layers: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    local_num_heads: int
    local_num_kv_heads: int
    local_head_dim: int
    sliding_window: int
    global_window: int
    d_rel: int
    rel_extent: int
    log_floor: int | None
    log_alpha: float
    num_dense_layers: int
    dense_width: int
    num_experts: int
    top_k: int
    num_shared_experts: int
    expert_width: int
    route_scale: float
    vocab_size: int
    unpadded_vocab_size: int
    mup_multiplier: float
    eps: float
    conv_kernel: int
    max_rows_per_tick: int
    num_sink_tokens: int = 0
    local_num_sink_tokens: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in CHECKED_APART and value <= 0:
                raise ValueError(f"trunk: {name} must be positive, got {value}")
        for name in ("hidden_size", "head_dim", "local_head_dim", "dense_width", "expert_width"):
            if getattr(self, name) % WIDTH:
                raise ValueError(
                    f"trunk: {name} must be a multiple of {WIDTH}, so that a row's bits do not "
                    f"depend on its batch; got {getattr(self, name)}"
                )
        layers = self.global_layers
        if layers != tuple(sorted(set(layers))) or not set(layers) <= set(range(self.num_layers)):
            raise ValueError(
                f"trunk: global_layers must be rising numbers of the {self.num_layers} layers, "
                f"got {layers}"
            )
        for kind in ("", "local_"):
            heads, kv_heads = (getattr(self, f"{kind}{n}") for n in ("num_heads", "num_kv_heads"))
            if heads % kv_heads:
                raise ValueError(
                    f"trunk: {kind}num_heads must be a multiple of {kind}num_kv_heads, got "
                    f"{heads} and {kv_heads}"
                )
        if self.log_floor is not None and self.log_floor <= 0:
            raise ValueError(f"trunk: log_floor must be positive or None, got {self.log_floor}")
        for name in ("num_sink_tokens", "local_num_sink_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"trunk: {name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.num_dense_layers <= self.num_layers:
            raise ValueError(
                f"trunk: num_dense_layers must be 0 to {self.num_layers}, "
                f"got {self.num_dense_layers}"
            )
        if self.top_k > self.num_experts or self.num_shared_experts < 0:
            raise ValueError(
                f"trunk: top_k must be at most num_experts and num_shared_experts not negative, "
                f"got {self.top_k} of {self.num_experts} and {self.num_shared_experts}"
            )
        if self.unpadded_vocab_size > self.vocab_size:
            raise ValueError(
                f"trunk: unpadded_vocab_size must be at most vocab_size = {self.vocab_size}, "
                f"got {self.unpadded_vocab_size}"
            )

    def attention(self, layer: int) -> AttentionConfig:
        """The attention of one layer."""
        if layer in self.global_layers:
            return AttentionConfig(
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                window=self.global_window,
                num_sink_tokens=self.num_sink_tokens,
                extent=self.rel_extent,
                log_floor=self.log_floor,
                log_alpha=self.log_alpha,
                pages=True,
            )
        return AttentionConfig(
            num_heads=self.local_num_heads,
            num_kv_heads=self.local_num_kv_heads,
            head_dim=self.local_head_dim,
            window=self.sliding_window,
            num_sink_tokens=self.local_num_sink_tokens,
            extent=self.sliding_window,
            log_floor=None,
            log_alpha=0.0,
            pages=False,
        )


@dataclass(frozen=True)
class AttentionConfig:
    """One layer's attention; `pages`: its keys live in pages (global layers), else in a ring."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int
    num_sink_tokens: int
    extent: int
    log_floor: int | None
    log_alpha: float
    pages: bool
