"""Safetensors checkpoints, read and written a slice at a time, and weights in fewer bits."""

from microturn.kernels.quantized import Quantized, dequantize, quantize
from microturn.model.checkpoint.errors import CheckpointError
from microturn.model.checkpoint.fit import FLOATS, Wanted, check_fit
from microturn.model.checkpoint.quantization import WEIGHT_DTYPES
from microturn.model.checkpoint.reader import INDEX, SINGLE, Checkpoint
from microturn.model.checkpoint.shard import TensorInfo
from microturn.model.checkpoint.source import Held, Source, as_source
from microturn.model.checkpoint.streaming import Progress, Slot, read_config, stream
from microturn.model.checkpoint.writer import Item, held_items, write_checkpoint, write_file

__all__ = [
    "FLOATS",
    "INDEX",
    "SINGLE",
    "WEIGHT_DTYPES",
    "Checkpoint",
    "CheckpointError",
    "Held",
    "Item",
    "Progress",
    "Quantized",
    "Slot",
    "Source",
    "TensorInfo",
    "Wanted",
    "as_source",
    "check_fit",
    "dequantize",
    "held_items",
    "quantize",
    "read_config",
    "stream",
    "write_checkpoint",
    "write_file",
]
