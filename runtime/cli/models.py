"""`microturn models`: the presets, counted without allocating a weight."""

from __future__ import annotations

from dataclasses import dataclass

from microturn.runtime import machine

REAL_TIME = {
    "interaction-tiny": "2 CPU cores",
    "interaction-mini": "one GPU",
    "interaction-small": "8 GPUs of 80 GB",
}
"""What keeps a 100 ms tick (DESIGN 3, spec/interaction.md 6)."""


@dataclass(frozen=True)
class PresetRow:
    """One preset.

    parameters     values a checkpoint stores
    weight_bytes   fp32, as the CPU engine holds them
    session_bytes  arenas of one session at a tick of 100 ms
    trained        whether the weights it loads with are trained
    real_time      what it takes to keep its tick
    fits           whether weights and one session fit this machine's free memory
    """

    name: str
    layers: int
    hidden: int
    experts: str
    vocabulary: int
    parameters: int
    weight_bytes: int
    session_bytes: int
    trained: bool
    real_time: str
    fits: bool


def preset_table() -> list[PresetRow]:
    """Every preset, in the order the model package lists them."""
    from microturn.model.interaction import PRESETS

    return [_row(name) for name in PRESETS]


def _row(name: str) -> PresetRow:
    import torch

    from microturn.model.interaction import (
        InteractionFamily,
        InteractionModel,
        num_parameters,
        preset,
    )
    from microturn.model.interaction.presets import TRAINED

    config = preset(name)
    with torch.device("meta"):
        model = InteractionModel(config)
    family = InteractionFamily(model)
    parameters = num_parameters(config)
    session = sum(spec.bytes_per_slot for spec in family.arena_specs())
    trunk = config.trunk
    return PresetRow(
        name=name,
        layers=trunk.num_layers,
        hidden=trunk.hidden_size,
        experts=f"{trunk.num_experts} ({trunk.top_k} + {trunk.num_shared_experts})",
        vocabulary=trunk.unpadded_vocab_size,
        parameters=parameters,
        weight_bytes=4 * parameters,
        session_bytes=session,
        trained=name in TRAINED,
        real_time=REAL_TIME.get(name, "not measured"),
        fits=4 * parameters + session < machine.memory_bytes()[1],
    )


def bytes_text(value: float) -> str:
    """Bytes for people: "44.9 MB"."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value / 1e3:.1f} kB"


def count_text(value: int) -> str:
    """Parameters for people: "11.8 M"."""
    for scale, letter in ((1e9, "B"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.4g} {letter}"
    return f"{value:,}"
