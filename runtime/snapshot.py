"""The file a session is saved in: written whole or not at all, read whole or not at all.

    8 bytes   b"mtsnap\\r\\n"
    4 bytes   version of the format, little-endian like all numbers here
    8 bytes   length of the header
    header    JSON: "facts", and "sections" [[name, dtype, shape], ...] in the order they follow in
    sections  raw arrays, one after the other
    32 bytes  SHA-256 of everything before

No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.errors import SnapshotError

MAGIC = b"mtsnap\r\n"
VERSION = 1
SUFFIX = ".snapshot"
_LEADER = struct.Struct("<8sIQ")
_DIGEST = 32
_DTYPES = ("|u1", "<i2", "<i8", "<f4", "<f8")


@dataclass(frozen=True)
class Snapshot:
    """facts: JSON values; arrays by name."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot that is safe on disk.

    bytes     of the file
    copy_ms   that ticks stood still for: the copy of the session
    seconds   from the copy's end until the file was durable
    position_ms  the session's media time: what it goes on with
    """

    session_id: str
    path: Path
    bytes: int
    copy_ms: float
    seconds: float
    position_ms: int


def write_snapshot(path: Path, snapshot: Snapshot) -> int:
    """The bytes written. Until all of them are on disk, `path` holds what it held before, whatever
    happens to this process; what a killed one left unfinished beside it is overwritten by the next.

    Raises OSError, and ValueError for an array of a dtype that the format has no name for.
    """
    unfinished = path.with_name(path.name + ".part")
    size, sha = 0, hashlib.sha256()
    try:
        with unfinished.open("wb") as file:
            for part in _parts(snapshot):
                sha.update(part)
                size += file.write(part)
            size += file.write(sha.digest())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # a disk that is full needs the room
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return size


def read_snapshot(path: Path) -> Snapshot:
    """Raises SnapshotError: cannot be read, foreign, newer, cut off, damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror or error}") from None
    if data[: len(MAGIC)] != MAGIC:
        raise SnapshotError(f"{path} is not a snapshot of microturn's: it begins {data[:8]!r}")
    if len(data) < _LEADER.size + _DIGEST:
        raise SnapshotError(f"{path} is cut off: it ends after {len(data)} bytes")
    _, version, length = _LEADER.unpack_from(data)
    if version != VERSION:
        raise SnapshotError(
            f"{path} is of version {version}, this microturn reads version {VERSION}; restore it "
            f"with the one that wrote it"
        )
    body = memoryview(data)[:-_DIGEST]
    if hashlib.sha256(body).digest() != data[-_DIGEST:]:
        raise SnapshotError(f"{path} is cut off or damaged: its checksum does not fit its bytes")
    try:
        return _unpack(body, length)
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{path} was written wrongly: {error!r}") from None


def _parts(snapshot: Snapshot) -> Iterator[bytes | memoryview]:
    arrays = {
        name: np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        for name, array in snapshot.arrays.items()
    }
    sections = []
    for name, array in arrays.items():
        if array.dtype.str not in _DTYPES:
            raise ValueError(f"{name}: a snapshot holds {', '.join(_DTYPES)}, got {array.dtype}")
        sections.append([name, array.dtype.str, list(array.shape)])
    header = json.dumps({"facts": dict(snapshot.facts), "sections": sections}).encode()
    yield _LEADER.pack(MAGIC, VERSION, len(header))
    yield header
    for array in arrays.values():
        if array.size:
            yield array.data.cast("B")


def _unpack(body: memoryview, length: int) -> Snapshot:
    at = _LEADER.size + length
    header = json.loads(bytes(body[_LEADER.size : at]))
    arrays = {}
    for name, kind, shape in header["sections"]:
        if kind not in _DTYPES:
            raise ValueError(f"{name} has dtype {kind!r}")
        count = math.prod(shape)
        # A copy: sections are not aligned, and a session writes to some of them.
        arrays[name] = np.frombuffer(body, kind, count, at).reshape(shape).copy()
        at += arrays[name].nbytes
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes are left over")
    return Snapshot(header["facts"], arrays)
