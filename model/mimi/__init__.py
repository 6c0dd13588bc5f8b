"""The Mimi codec (spec/moshi-mimi.md 3.1): speech to codes and back, frame by frame."""

from microturn.model.mimi.config import MimiConfig
from microturn.model.mimi.decoder import DecoderState, MimiDecoder
from microturn.model.mimi.encoder import EncoderState, MimiEncoder
from microturn.model.mimi.files import load_mimi, save_mimi
from microturn.model.mimi.mimi import Mimi
from microturn.model.mimi.names import load_kyutai

__all__ = [
    "DecoderState",
    "EncoderState",
    "Mimi",
    "MimiConfig",
    "MimiDecoder",
    "MimiEncoder",
    "load_kyutai",
    "load_mimi",
    "save_mimi",
]
