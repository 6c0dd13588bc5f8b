"""A release of Inkling: its folder into trunk and towers, and back under the same names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from microturn.model.checkpoint import (
    Checkpoint,
    Item,
    Progress,
    check_fit,
    stream,
    write_checkpoint,
)
from microturn.model.checkpoint.quantization import check_weight_dtype
from microturn.model.checkpoint.writer import SHARD_BYTES
from microturn.model.inkling.audio import AudioTower
from microturn.model.inkling.names import (
    Released,
    audio_tensors,
    place,
    slots,
    trunk_tensors,
    wanted,
)
from microturn.model.inkling.release_config import (
    DEFAULT_ROWS,
    DEFAULT_WINDOW,
    NAME,
    ReleaseConfig,
    read_release_config,
)
from microturn.model.inkling.trunk import Trunk
from microturn.model.inkling.vision import VisionTower
from microturn.model.inkling.vision_names import vision_tensors
from microturn.model.memory import free_bytes

if TYPE_CHECKING:
    from microturn.model.family import Tokenizer

LLM, AUDIO, VISUAL, MTP = "model.llm.", "model.audio.", "model.visual.", "model.mtp."
LEFT = (VISUAL, MTP)
"""Parts of a release that are known and may stay in the files."""

TOKENIZER = "tokenizer.json"
BESIDE = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "processor_config.json",
)
"""Files that travel with the weights as they are."""


@dataclass(frozen=True)
class Inkling:
    """The released model: it hears, sees and reads, and writes text. It has no audio head.

    audio, visual: the towers, None where config.json names none, or a vision tower of other sizes
    tokenizer: the release's own, None when its folder has none
    folder: where it was loaded from
    """

    config: ReleaseConfig
    trunk: Trunk
    audio: AudioTower | None = None
    visual: VisionTower | None = None
    tokenizer: Tokenizer | None = None
    folder: Path | None = None

    name = "inkling"

    @classmethod
    def empty(cls, config: ReleaseConfig) -> Inkling:
        """Of these sizes, values uninitialised."""
        trunk, mels, bins = config.trunk, config.audio_mels, config.audio_bins
        hidden = trunk.hidden_size
        return cls(
            config,
            Trunk(trunk).eval(),
            AudioTower(hidden, mels, bins, trunk.eps).eval() if mels else None,
            VisionTower(config.vision, hidden).eval() if config.vision else None,
        )

    def parts(self) -> list[tuple[str, nn.Module, Sequence[Released]]]:
        """Each part's prefix in the release, module and table of tensors."""
        parts: list[tuple[str, nn.Module, Sequence[Released]]] = [
            (LLM, self.trunk, trunk_tensors(self.trunk.config))
        ]
        if self.audio is not None:
            parts.append((AUDIO, self.audio, audio_tensors(self.audio)))
        if self.visual is not None:
            parts.append((VISUAL, self.visual, vision_tensors(self.visual)))
        return parts


def load_release(
    folder: Path,
    *,
    dtype: str = "fp32",
    global_window: int = DEFAULT_WINDOW,
    max_rows_per_tick: int = DEFAULT_ROWS,
    beside: int = 0,
    progress: Progress | None = None,
) -> Inkling:
    """Streams a released folder (spec/inkling.md 1.6) into a model on the CPU.

    Parameters have torch's default dtype and the values that weights stored as `dtype` have: fp32,
    bf16 or fp8 (checkpoint.quantization). Beside the model, only slices of a tensor are held.
    MTP tensors are left in the files, and those of a vision tower that config.json gives sizes
    which we do not compute.
    beside  bytes that the caller will need as well

    Raises CheckpointError naming file and tensor, before anything is allocated where the headers
    tell; FileNotFoundError; MemoryError when the model does not fit; ValueError on another dtype.
    """
    check_weight_dtype(dtype)
    config = read_release_config(
        folder, global_window=global_window, max_rows_per_tick=max_rows_per_tick
    )
    files = Checkpoint(folder)
    with torch.device("meta"):
        sizes = Inkling.empty(config)
    check_fit(
        files,
        {k: v for prefix, _, table in sizes.parts() for k, v in wanted(table, prefix).items()},
        lambda name: not name.startswith(LEFT if sizes.visual is None else MTP),
    )
    tokenizer = _tokenizer(folder)
    _check_memory(sizes, folder, beside)
    made = Inkling.empty(config)
    stream(
        files,
        (slot for prefix, part, table in made.parts() for slot in slots(part, table, prefix)),
        dtype,
        progress,
    )
    return Inkling(config, made.trunk, made.audio, made.visual, tokenizer, folder)


def save_release(
    model: Inkling,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Writes config.json and the weights under the released names: `dtype`, scalars of the routers
    fp32. What the folder it was loaded from holds beyond (MTP, a tower left there, tokenizer) is
    copied.

    Raises CheckpointError when the folder holds another checkpoint, OSError.
    """
    items = [
        Item(
            prefix + entry.name,
            torch.float32 if entry.kind == "scalar" else dtype,
            entry.shape,
            _rows(place(part, entry), entry.shape),
        )
        for prefix, part, table in model.parts()
        for entry in table
    ]
    if model.folder is not None:
        items += _copied(Checkpoint(model.folder), {item.name for item in items})
    write_checkpoint(folder, items, shard_bytes=shard_bytes, progress=progress)
    text = json.dumps(_stored_as(model.config.to_dict(), dtype), indent=2)
    (folder / NAME).write_text(text + "\n")
    for name in BESIDE:
        if model.folder is not None and (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)


def _stored_as(config: dict[str, object], dtype: torch.dtype) -> dict[str, object]:
    """transformers computes in the dtype that the file names, wherever it stands."""
    name = str(dtype).removeprefix("torch.")
    config = {**config, "dtype": name}
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config["text_config"] = {
            k: name if k in ("dtype", "torch_dtype") else v for k, v in text.items()
        }
    return config


def _rows(values: Tensor, shape: tuple[int, ...]) -> Callable[[int, int], Tensor]:
    return lambda start, stop: values[start:stop].reshape(stop - start, *shape[1:])


def _copied(files: Checkpoint, known: set[str]) -> list[Item]:
    """Tensors of `files` that are not known, as they are."""

    def rows_of(name: str) -> Callable[[int, int], Tensor]:
        return lambda start, stop: files.rows(name, start, stop)

    return [
        Item(name, info.dtype, info.shape, rows_of(name))
        for name, info in files.tensors.items()
        if name not in known
    ]


def _tokenizer(folder: Path) -> Tokenizer | None:
    # The interaction package imports this module.
    from microturn.model.interaction.tokenizer import FileTokenizer

    path = folder / TOKENIZER
    return FileTokenizer(path) if path.is_file() else None


def _check_memory(sizes: Inkling, folder: Path, beside: int) -> None:
    kind = torch.get_default_dtype()
    values = [t for _, part, _ in sizes.parts() for t in part.state_dict().values()]
    need = kind.itemsize * sum(tensor.numel() for tensor in values)
    have = free_bytes()
    if need + beside > have:
        state = f" and {beside / 1e9:,.1f} GB for its state" if beside else ""
        raise MemoryError(
            f"{folder} needs {need / 1e9:,.1f} GB of memory in {str(kind).removeprefix('torch.')}"
            f"{state}, {have / 1e9:,.1f} GB are free"
        )
