"""Released weights from a folder or file, for the commands that compare frameworks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from microturn.runtime.cli.errors import usage_errors

if TYPE_CHECKING:
    from microturn.model.inkling.trunk import Trunk
    from microturn.model.mimi import Mimi

T = TypeVar("T")


def load_trunk(folder: Path, *, rows: int, chunk: int, dtype: str = "fp32") -> Trunk:
    """An Inkling backbone for one sequence of `rows` rows in pieces of `chunk`, its weights as
    `dtype` stores them.

    Global layers see the whole sequence, as the released model does. Raises UsageError when the
    folder is no checkpoint, does not fit its own config, or does not fit into memory.
    """
    from microturn.model.inkling.release import load_release

    with usage_errors(ValueError, OSError, MemoryError):
        model = load_release(folder, dtype=dtype, global_window=rows, max_rows_per_tick=chunk)
    return model.trunk.eval().requires_grad_(False)


def load_codec(path: Path, *, books: int | None = None) -> Mimi:
    """A Mimi codec in fp32, in kyutai's layout or Hugging Face's.

    books: codebooks to run on; None: 8, or all where the file has fewer. Raises UsageError when
    there is no such file, or it is not a codec, or has not as many books.
    """
    from microturn.model.mimi import load_mimi

    with usage_errors(ValueError, OSError):
        return load_mimi(path, num_codebooks=books)


def written(path: Path, write: Callable[[Path], T]) -> T:
    """What `write` returns, having written beside `path`: a file of that name is whole or is not
    there. Raises UsageError when it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with usage_errors(OSError):
        try:
            result = write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return result
