"""Running a recorded session again, alone, and comparing every bit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from microturn.model.family import ModelFamily, Sampling
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.dump import FORMAT, HEADER, HEARD, SAID, SEEN, TICKS, VERSION, Header
from microturn.runtime.engine import RowInput, RowOutput
from microturn.runtime.errors import DumpError
from microturn.runtime.image_input import PATCH
from microturn.runtime.plan import RowPlan, TickPlan, bucket
from microturn.runtime.versions import versions


@dataclass(frozen=True)
class ReplayReport:
    """What a replay found.

    ticks       ticks run again
    difference  the first tick that differs and in what; None when every bit is the same
    end         how the recording ends; empty when it was cut off
    notes       what may explain a difference: other versions than the recording's
    """

    session_id: str
    ticks: int
    difference: str | None
    end: str
    notes: tuple[str, ...]

    @property
    def exact(self) -> bool:
        return self.difference is None


def dumped_sessions(folder: str | Path) -> tuple[Path, ...]:
    """The session folders of a dump folder, or the folder itself when it is one. Raises DumpError
    when there is none.
    """
    path = Path(folder)
    if (path / HEADER).is_file():
        return (path,)
    found = tuple(sorted(p.parent for p in path.glob(f"*/{HEADER}")))
    if not found:
        raise DumpError(f"{path} holds no dump: neither {HEADER} nor folders that have one")
    return found


def read_header(folder: str | Path) -> Header:
    """The header of one session's folder. Raises DumpError on a newer or foreign format."""
    path = Path(folder) / HEADER
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DumpError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise DumpError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DumpError(f"{path} is not of a {FORMAT}")
    if values.get("version") != VERSION:
        raise DumpError(
            f"{path} is of version {values.get('version')!r}, this microturn reads version "
            f"{VERSION}; replay it with the one that wrote it"
        )
    try:
        return Header(**values)
    except TypeError as error:
        raise DumpError(f"{path} does not have the fields of version {VERSION}: {error}") from None


def replay(folder: str | Path, family: ModelFamily, *, threads: int = 1) -> ReplayReport:
    """Steps one recorded session (its folder, or a dump folder with no other) through `family`,
    alone in one slot, until the first tick that differs.

    Raises DumpError when the dump cannot be read, or is of another family, shape or weights.
    """
    sessions = dumped_sessions(folder)
    if len(sessions) > 1:
        names = ", ".join(path.name for path in sessions)
        raise DumpError(f"{folder} holds {len(sessions)} sessions, name one of them: {names}")
    header = read_header(sessions[0])
    _check(header, family)
    engine = CpuEngine(family, num_slots=1, threads=threads)
    reader = _Reader(sessions[0], header)
    count, difference = 0, None
    for tick, row, given, recorded in reader:
        plan = TickPlan(tick, 0, 1, bucket(row.num_rows), (row,))
        made = engine.step(plan, {row.session_id: given}).rows[row.session_id]
        count += 1
        what = _differs(recorded, made)
        if what is not None:
            difference = f"tick {tick}: {what}"
            break
    now = versions()
    notes = tuple(
        f"recorded with {name} {then}, replayed with {now.get(name)}"
        for name, then in header.versions.items()
        if now.get(name) != then
    )
    return ReplayReport(header.session_id, count, difference, reader.end, notes)


def _check(header: Header, family: ModelFamily) -> None:
    if header.family != family.name:
        raise DumpError(f"the dump is of {header.family!r}, the model is {family.name!r}")
    shape = dataclasses.asdict(family.shape)
    if dict(header.shape) != shape:
        raise DumpError(f"the dump's ticks are {dict(header.shape)}, the model's are {shape}")
    digest = family.digest()
    if header.weights != digest:
        raise DumpError(
            f"the dump is of weights {header.weights[:12]}, the model has {digest[:12]}; load the "
            f"checkpoint or seed it was recorded with"
        )


def _differs(recorded: RowOutput, made: RowOutput) -> str | None:
    if recorded.ok != made.ok:
        return f"ok was {recorded.ok}, is {made.ok}"
    for name in ("text_ids", "codes", "audio"):
        then, now = getattr(recorded, name), getattr(made, name)
        if then.tobytes() == now.tobytes():
            continue
        where = np.argwhere(then.ravel() != now.ravel())
        at = int(where[0, 0]) if len(where) else 0
        return (
            f"{name} differs at {at} ({then.ravel()[at]!r} was recorded, {now.ravel()[at]!r} came)"
        )
    return None


class _Reader:
    """The ticks of a recording, one at a time, its slot replaced by 0."""

    def __init__(self, folder: Path, header: Header) -> None:
        self._folder = folder
        self._header = header
        self.end = ""

    def __iter__(self) -> Iterator[tuple[int, RowPlan, RowInput, RowOutput]]:
        folder, sampling = self._folder, None
        try:
            files = [(folder / name).open("rb") for name in (HEARD, SAID, SEEN, TICKS)]
        except OSError as error:
            raise DumpError(f"{folder} is not whole: {error}") from None
        try:
            for number, text in enumerate(files[3], 1):
                if not text.endswith(b"\n"):
                    return  # the recording process died while it wrote this line
                where = f"{folder / TICKS}, line {number}"
                try:
                    line = json.loads(text)
                    if "end" in line:
                        self.end = str(line["end"])
                        return
                    if "sampling" in line:
                        sampling = Sampling(**line["sampling"])
                    if sampling is None:
                        raise KeyError("sampling")
                    yield self._tick(line, sampling, files)
                except DumpError:
                    raise
                except (ValueError, KeyError, TypeError) as error:
                    raise DumpError(f"{where} is damaged: {error!r}") from None
        finally:
            for file in files:
                file.close()

    def _tick(
        self, line: dict[str, Any], sampling: Sampling, files: list[Any]
    ) -> tuple[int, RowPlan, RowInput, RowOutput]:
        shape, live = self._header.shape, bool(line["exec"])
        n_feedback, n_context, n_patches, n_audio = line["rows"]
        row = RowPlan(
            session_id=self._header.session_id,
            slot=0,
            exec=live,
            reset=line["reset"],
            n_context=n_context,
            n_patches=n_patches,
            n_audio=n_audio,
            n_feedback=n_feedback,
        )
        given = RowInput(
            audio=_samples(files[0], shape["input_samples"] * live),
            context_ids=tuple(line["context"]),
            seed=self._header.seed,
            sampling=sampling,
            patches=_patches(files[2], n_patches),
        )
        made = RowOutput(
            ok=line["ok"],
            text_ids=np.array(line["text"], np.int64),
            codes=np.array(line["codes"], np.int64),
            audio=_samples(files[1], shape["output_samples"] * live),
        )
        return line["tick"], row, given, made


def _samples(file: IO[bytes], count: int) -> NDArray[np.float32]:
    return _read(file, np.dtype("<f4"), count).astype(np.float32)


def _patches(file: IO[bytes], count: int) -> NDArray[np.int16]:
    values = _read(file, np.dtype("<i2"), count * math.prod(PATCH))
    return values.astype(np.int16).reshape(count, *PATCH)


def _read(file: IO[bytes], dtype: Any, count: int) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize * count
    data = file.read(size)
    if len(data) != size:
        raise DumpError(f"{file.name} ends too soon: {size} bytes were wanted, {len(data)} came")
    return np.frombuffer(data, dtype).copy()
