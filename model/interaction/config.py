"""Sizes of an interaction model, and the tick they imply (spec/interaction.md section 1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from microturn.model.family import TickShape
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.vision import VisionConfig
from microturn.model.interaction.depth import DepthConfig
from microturn.model.mimi.config import MimiConfig

SLOT_MS = 50
"""One audio token in, one output position, one codec frame out."""

APPEND_ROWS = 64
"""Rows one session may bring to an append pass (DESIGN 5)."""

ROWS_PER_COMMIT = 2 * APPEND_ROWS
"""Rows a tick may write before it commits: the append pass and the single-row passes after it."""


@dataclass(frozen=True)
class InteractionConfig:
    """trunk, depth head and codec of one model; the three special output ids end the vocabulary.

    listen_id, delegate_id, start_id: text ids (spec/interaction.md section 1)
    audio_mels, audio_bins: the dMel front end; audio_rate its sample rate, in Hz
    tokenizer: the package file that comes with the preset, None where a checkpoint brings its own
    vision: the image tower; None: the model sees nothing

    Raises ValueError when the parts do not fit each other.
    """

    name: str
    trunk: TrunkConfig
    depth: DepthConfig
    codec: MimiConfig
    listen_id: int
    delegate_id: int
    start_id: int
    audio_mels: int = 80
    audio_bins: int = 16
    audio_rate: int = 16_000
    tokenizer: str | None = None
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        want = {
            "depth.hidden_size": (self.depth.hidden_size, self.trunk.hidden_size),
            "depth.text_vocab_size": (
                self.depth.text_vocab_size,
                self.trunk.unpadded_vocab_size,
            ),
            "depth.num_codebooks": (self.depth.num_codebooks, self.codec.num_codebooks),
            "depth.codebook_size": (self.depth.codebook_size, self.codec.codebook_size),
            "codec.frame_size": (self.codec.frame_size * 1000, self.codec.sample_rate * SLOT_MS),
            "start_id": (self.start_id, self.trunk.unpadded_vocab_size - 1),
        }
        for name, (got, needed) in want.items():
            if got != needed:
                raise ValueError(f"{self.name}: {name} must be {needed} here, got {got}")

    def tick_shape(self, tick_ms: int) -> TickShape:
        """Raises ValueError unless tick_ms is a positive multiple of 50 that fits the row
        budget.
        """
        if tick_ms <= 0 or tick_ms % SLOT_MS:
            raise ValueError(f"tick_ms must be a positive multiple of {SLOT_MS}, got {tick_ms}")
        frames = tick_ms // SLOT_MS
        if 1 + frames > APPEND_ROWS:
            raise ValueError(
                f"tick_ms = {tick_ms} needs {1 + frames} rows, a tick holds {APPEND_ROWS}; "
                f"take at most {(APPEND_ROWS - 1) * SLOT_MS} ms"
            )
        return TickShape(
            tick_ms=tick_ms,
            frames=frames,
            input_rate=self.audio_rate,
            input_samples=self.audio_rate * tick_ms // 1000,
            output_rate=self.codec.sample_rate,
            output_samples=self.codec.frame_size * frames,
            num_codebooks=self.codec.num_codebooks,
            codebook_size=self.codec.codebook_size,
            max_rows=APPEND_ROWS,
        )

    def with_window(self, window: int | None, num_sink_tokens: int | None) -> InteractionConfig:
        """Global layers that see so many keys, and beside them so many first ones of a session;
        None leaves as it is. Raises ValueError.
        """
        changes: dict[str, Any] = {
            name: value
            for name, value in (("global_window", window), ("num_sink_tokens", num_sink_tokens))
            if value is not None
        }
        return dataclasses.replace(self, trunk=dataclasses.replace(self.trunk, **changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint's config.json holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InteractionConfig:
        """The inverse of to_dict. Raises ValueError naming an unknown or missing field."""
        nested: dict[str, Any] = {
            "trunk": TrunkConfig,
            "depth": DepthConfig,
            "codec": MimiConfig,
            "vision": VisionConfig,
        }
        known = {
            k: _build(nested[k], v, k) if k in nested and v is not None else v
            for k, v in values.items()
        }
        config: InteractionConfig = _build(cls, known, "model")
        return config


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    names = {f.name for f in dataclasses.fields(kind)}
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if unknown := sorted(set(values) - names):
        raise ValueError(f"config: {where} has unknown fields {unknown}; known: {sorted(names)}")
    if missing := sorted(required - set(values)):
        raise ValueError(f"config: {where} lacks {missing}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
