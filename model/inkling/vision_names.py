"""Names of the vision tower's released tensors (spec/inkling.md 1.6)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from microturn.model.inkling.names import Released, _load
from microturn.model.inkling.vision import VisionTower


def vision_tensors(tower: VisionTower) -> tuple[Released, ...]:
    """Everything under `model.visual.`."""
    return (
        *(
            Released(f"layers.linear_{i}.weight", tuple(weight.shape), f"linears.{i}")
            for i, weight in enumerate(tower.linears)
        ),
        *(
            Released(f"layers.norm_{i}.weight", (width,), f"norms.{i}.gain")
            for i, width in enumerate(tower.config.widths)
        ),
        Released("final_norm.weight", tuple(tower.final_norm.gain.shape), "final_norm.gain"),
    )


def load_released_vision(
    tower: VisionTower, tensors: Mapping[str, Tensor], prefix: str = "model.visual."
) -> None:
    """Copies released tensors into `tower`; see `load_released`."""
    _load(tower, vision_tensors(tower), tensors, prefix)
