"""Runs the `ops` suite: items one after another within a time box, and a document of their rows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from microturn.bench import rows, schema
from microturn.bench.isolated import Worker
from microturn.bench.ops import Bench
from microturn.bench.providers.every import pick
from microturn.bench.rows import Row
from microturn.bench.subjects import Item
from microturn.runtime.ceilings import Ceilings, measure

SUITE = "ops"


class Measurer(Protocol):
    """Something that measures one item by providers of these names."""

    @property
    def ceilings(self) -> Ceilings | None: ...
    @property
    def overhead(self) -> dict[str, float]: ...
    def measure(self, item: Item, providers: Sequence[str]) -> Iterator[Row]: ...


@dataclass(frozen=True)
class Here:
    """Measures in this process."""

    bench: Bench

    @property
    def ceilings(self) -> Ceilings:
        return self.bench.ceilings

    @property
    def overhead(self) -> dict[str, float]:
        return self.bench.overhead

    def measure(self, item: Item, providers: Sequence[str]) -> Iterator[Row]:
        return self.bench.measure(item, pick(providers))


@contextlib.contextmanager
def measurer(device: str, *, seconds: float | None = None, seed: int = 0) -> Iterator[Measurer]:
    """In this process on a CPU, in one of its own on a GPU."""
    if device != "cpu":
        with Worker(device, seconds=seconds, seed=seed) as worker:
            yield worker
        return
    import torch

    from microturn.runtime.timing import timer

    clock = timer(torch.device("cpu"), seconds)
    yield Here(Bench(clock, measure(clock), seed, clock.overhead()))


def run(
    measurer: Measurer,
    items: Sequence[Item],
    providers: Sequence[str],
    *,
    box_seconds: float | None = None,
    watch: Callable[[Item, Sequence[Row]], None] = lambda item, found: None,
) -> list[Row]:
    """Every item's rows; `watch` gets each item's as they come.

    box_seconds  after which what is left is not measured, and says so
    """
    end = None if box_seconds is None else time.monotonic() + box_seconds
    found: list[Row] = []
    for item in items:
        if end is not None and time.monotonic() >= end:
            new = [
                rows.null(item, rows.OURS, f"the time box of {box_seconds:.0f} s was over", None)
            ]
        else:
            new = rows.beside_peers(measurer.measure(item, providers))
        found += new
        watch(item, new)
    return found


def document(
    measurer: Measurer,
    device: str,
    found: Sequence[Row],
    *,
    suite: str = SUITE,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Rows and on what they were measured."""
    import torch

    from microturn.bench.machine import meta

    about = meta(device, threads=torch.get_num_threads())
    if measurer.ceilings is not None:
        about["ceilings"] = measurer.ceilings.as_meta()
    about["timing"] = (
        "isolated CUDA graph replays between events; nothing taken off"
        if device != "cpu"
        else "perf_counter, few repeats, warm cache: for order of magnitude"
    )
    about["overhead"] = measurer.overhead
    return schema.document(suite, about | (more or {}), rows.beside_cases(found))
