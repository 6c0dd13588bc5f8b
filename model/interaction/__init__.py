"""The interaction family (spec/interaction.md): sizes, modules, the tick program."""

from microturn.model.interaction.config import InteractionConfig
from microturn.model.interaction.load import NoAudioHead, load, load_family, num_parameters, save
from microturn.model.interaction.model import InteractionModel
from microturn.model.interaction.presets import PRESETS, preset
from microturn.model.interaction.step import InteractionFamily

__all__ = [
    "PRESETS",
    "InteractionConfig",
    "InteractionFamily",
    "InteractionModel",
    "NoAudioHead",
    "load",
    "load_family",
    "num_parameters",
    "preset",
    "save",
]
