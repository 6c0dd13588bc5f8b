"""Whether the tensors of a checkpoint are those a model wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from microturn.model.checkpoint.errors import CheckpointError
from microturn.model.checkpoint.shard import CODES
from microturn.model.checkpoint.source import Source

MOST_NAMED = 8
"""Tensors an error names before it says how many more there are."""

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Wanted:
    """The shape of a tensor and the dtypes it may have on disk."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...] = FLOATS


def check_fit(
    source: Source,
    wanted: Mapping[str, Wanted],
    belongs: Callable[[str], bool] = lambda name: True,
) -> None:
    """Raises CheckpointError naming missing, extra and mis-shaped tensors with both shapes, and
    dtypes that are not read. Names that do not belong are somebody else's.
    """
    given = {name: info for name, info in source.tensors.items() if belongs(name)}
    problems = [
        f"{name} is missing, wanted {list(want.shape)}"
        for name, want in wanted.items()
        if name not in given
    ]
    problems += [
        f"{info.where} {list(info.shape)} is not part of this model"
        for name, info in given.items()
        if name not in wanted
    ]
    for name, want in wanted.items():
        if name not in given:
            continue
        info = given[name]
        if info.shape != want.shape:
            problems.append(f"{info.where} is {list(info.shape)}, wanted {list(want.shape)}")
        if info.dtype not in want.dtypes:
            known = ", ".join(CODES[dtype] for dtype in want.dtypes)
            problems.append(f"{info.where} is of dtype {info.code}, wanted one of {known}")
    if problems:
        named, more = problems[:MOST_NAMED], len(problems) - MOST_NAMED
        text = "; ".join(named) + (f"; and {more} more" if more > 0 else "")
        raise CheckpointError(f"{source.where} does not fit the model: {text}")
