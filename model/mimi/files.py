"""A codec from its file, in kyutai's layout or Hugging Face's, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from microturn.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    Source,
    held_items,
    read_config,
    write_checkpoint,
    write_file,
)
from microturn.model.mimi.config import MimiConfig
from microturn.model.mimi.hugging_face import (
    HUGGING_FACE_MARK,
    KYUTAI_MARK,
    MODEL_TYPE,
    AsKyutai,
    from_kyutai,
    read_sizes,
    sizes_dict,
)
from microturn.model.mimi.kyutai_sizes import kyutai_sizes
from microturn.model.mimi.mimi import Mimi
from microturn.model.mimi.names import kyutai_tensors, load_kyutai

CONFIG = "config.json"
KYUTAI_FILES = "tokenizer-*.safetensors"

Layout = Literal["kyutai", "hugging_face"]


def load_mimi(
    path: Path, *, config: MimiConfig | None = None, num_codebooks: int | None = None
) -> Mimi:
    """A codec from a safetensors file, or from a folder with one (spec/moshi-mimi.md 3.1).

    The layout is told by the names. Sizes come from `config`, else from a Hugging Face config.json
    beside the weights, else from the shapes of kyutai's tensors. num_codebooks: books to run on, 8
    (or all there are) unless given.

    Raises CheckpointError naming file and tensor; FileNotFoundError; ValueError on num_codebooks
    the codec does not have.
    """
    weights, beside = _find(path)
    source = Checkpoint(weights)
    theirs = _is_hugging_face(source)
    if config is None:
        config = _sizes(source, beside, theirs, num_codebooks)
    codec = Mimi(config)
    load_kyutai(codec, AsKyutai(source, config) if theirs else source)
    return codec.requires_grad_(False).eval()


def save_mimi(
    codec: Mimi, path: Path, layout: Layout = "kyutai", dtype: torch.dtype = torch.float32
) -> None:
    """Writes values as `dtype`: kyutai's layout into the file `path`, Hugging Face's into the
    folder `path`, with its config.json. Raises OSError, and CheckpointError as write_checkpoint
    does.
    """
    tensors = kyutai_tensors(codec)
    if layout == "kyutai":
        write_file(path, held_items(tensors, dtype))
        return
    theirs = from_kyutai(tensors, codec.config.num_heads)
    write_checkpoint(path, held_items(theirs, dtype))
    (path / CONFIG).write_text(json.dumps(sizes_dict(codec.config), indent=2) + "\n")


def _sizes(
    source: Checkpoint, beside: MimiConfig | None, theirs: bool, num_codebooks: int | None
) -> MimiConfig:
    if beside is not None:
        config = beside
    elif theirs:
        config = MimiConfig.released()
    else:
        shapes = {name: info.shape for name, info in source.tensors.items()}
        config = kyutai_sizes(shapes, source.where)
    books = _books(source)
    if not books:
        raise CheckpointError(f"{source.where} holds no codebooks; give a whole codec")
    most = min(config.num_codebooks, MimiConfig.released().num_codebooks, books)
    wanted = most if num_codebooks is None else num_codebooks
    if not config.num_semantic < wanted <= max(books, most):
        raise ValueError(
            f"num_codebooks must be {config.num_semantic + 1} to {books}, which {source.where} "
            f"holds; got {wanted}"
        )
    return dataclasses.replace(config, num_codebooks=wanted)


def _find(path: Path) -> tuple[Path, MimiConfig | None]:
    """The weights, and the sizes that a config.json beside them gives."""
    folder = path if path.is_dir() else path.parent
    raw: Mapping[str, Any] = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    ours = raw.get("model_type") == MODEL_TYPE
    if ours or not path.is_dir():
        return path, read_sizes(folder / CONFIG, raw) if ours else None
    named = raw.get("mimi_name")
    files = sorted(path.glob(KYUTAI_FILES))
    if isinstance(named, str) and Path(named).name == named:
        files = [path / named]
    if len(files) != 1:
        raise CheckpointError(
            f"{path} is not a codec's folder: wanted a config.json of model_type {MODEL_TYPE!r} "
            f"with model.safetensors, or one {KYUTAI_FILES}, found "
            f"{', '.join(f.name for f in files) or 'neither'}; name the file itself"
        )
    return files[0], None


def _is_hugging_face(source: Source) -> bool:
    if HUGGING_FACE_MARK in source.tensors:
        return True
    if KYUTAI_MARK in source.tensors:
        return False
    raise CheckpointError(
        f"{source.where} is not a Mimi codec: it has neither {KYUTAI_MARK} (kyutai's layout) nor "
        f"{HUGGING_FACE_MARK} (Hugging Face's)"
    )


def _books(source: Source) -> int:
    return sum(name.endswith(("embedding_sum", "embed_sum")) for name in source.tensors)
