"""One safetensors file: its header checked, its tensors mapped."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from microturn.model.checkpoint.errors import CheckpointError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES: Mapping[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}

LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library accepts."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file. begin, end: bytes from the start of the file; file None: in memory."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path | None = None
    begin: int = 0
    end: int = 0

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def code(self) -> str:
        """The dtype as safetensors writes it, "BF16"."""
        return CODES.get(self.dtype, str(self.dtype))

    @property
    def where(self) -> str:
        """The name, and the file it is in."""
        return self.name if self.file is None else f"{self.file}: {self.name}"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of the file, in the order of its data. Raises CheckpointError, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(LENGTH_BYTES)
        length = int.from_bytes(head, "little")
        text = file.read(min(length, LARGEST_HEADER)) if len(head) == LENGTH_BYTES else b""
    if not text.startswith(b"{") or length > LARGEST_HEADER:
        raise CheckpointError(
            f"{path} is not a safetensors file: {size} bytes, and no header at its start"
        )
    if len(text) < length:
        raise CheckpointError(
            f"{path} is truncated: its header wants {length} bytes, {len(text)} are there; "
            f"fetch the file again"
        )
    start = LENGTH_BYTES + length
    entries = _entries(path, text)
    infos = [_info(path, name, entry, start) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.begin, info.end))
    _check_layout(path, infos, start, size)
    return {info.name: info for info in infos}


def mapped(info: TensorInfo, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows start : stop of a tensor (all of it when it has no rows), as a mapping of its file.

    Nothing is read until the values are; the mapping, and the memory behind it, goes with the
    tensor and its views. Writing to it changes no file. Raises CheckpointError when the file has
    become shorter, OSError.
    """
    assert info.file is not None
    shape = info.shape
    if shape:
        start, stop, _ = slice(start, stop).indices(shape[0])
        stop = max(start, stop)
        row = prod(shape[1:]) * info.dtype.itemsize
        begin, nbytes, shape = (
            info.begin + start * row,
            (stop - start) * row,
            (stop - start, *shape[1:]),
        )
    else:
        begin, nbytes = info.begin, info.dtype.itemsize
    if not nbytes:
        return torch.empty(shape, dtype=info.dtype)
    skip = begin % mmap.ALLOCATIONGRANULARITY
    with info.file.open("rb") as file:
        try:
            pages = mmap.mmap(
                file.fileno(), skip + nbytes, access=mmap.ACCESS_COPY, offset=begin - skip
            )
        except ValueError:
            raise CheckpointError(
                f"{info.where}: the file became shorter while it was read "
                f"({os.fstat(file.fileno()).st_size} bytes now)"
            ) from None
    pages.madvise(mmap.MADV_SEQUENTIAL)
    count = nbytes // info.dtype.itemsize
    if begin % info.dtype.itemsize:  # torch wants aligned values; files of odd headers have none
        held = bytearray(pages[skip : skip + nbytes])
        return torch.frombuffer(held, dtype=info.dtype, count=count).view(shape)
    return torch.frombuffer(pages, dtype=info.dtype, count=count, offset=skip).view(shape)


def _entries(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{path}: {twice} is in the header twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header is not JSON ({error})"
        ) from None
    header.pop("__metadata__", None)
    return dict(header)


def _info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    code, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(code, str) or not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{path}: {name} has no dtype, shape and data_offsets in the header, but {entry!r:.200}"
        )
    if code not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} is of dtype {code}, which is unknown here; known: {', '.join(DTYPES)}"
        )
    begin, end = offsets
    info = TensorInfo(name, DTYPES[code], tuple(shape), path, start + begin, start + end)
    if end - begin != info.nbytes:
        raise CheckpointError(
            f"{path}: {name} {list(info.shape)} {code} takes {info.nbytes} bytes, its data_offsets "
            f"hold {end - begin}"
        )
    return info


def _whole(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _check_layout(path: Path, infos: list[TensorInfo], start: int, size: int) -> None:
    """Data must follow data without gaps to the end of the file."""
    end = start
    for info in infos:
        if info.end > size:
            raise CheckpointError(
                f"{path} is truncated: {info.name} ends at byte {info.end}, the file at {size}; "
                f"fetch the file again"
            )
        if info.begin != end:
            what = "overlaps another tensor" if info.begin < end else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: {info.name} {what}: it begins at byte {info.begin}, wanted {end}"
            )
        end = info.end
    if end != size:
        last = infos[-1].name if infos else "the header"
        raise CheckpointError(f"{path}: {size - end} bytes follow {last}, wanted none")
