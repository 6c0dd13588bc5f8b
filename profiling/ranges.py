"""A hold on every op. Nothing is installed, and nothing costs, outside `op_ranges`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch.profiler import record_function

from microturn.kernels.registry import OP_NAMES

PREFIX = "op:"


Run = Callable[..., Any]
Wrap = Callable[[str, Run], Run]


def named(op: str, run: Run) -> Run:
    """`run` as a profiler range "op:<name>"."""

    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(PREFIX + op):
            return run(*args, **kwargs)

    return ranged


@contextmanager
def op_ranges(wrap: Wrap = named) -> Iterator[None]:
    """Inside, each call of a registered op is a profiler range "op:<name>", or what `wrap` makes
    of the op's name and its implementation.

    An op asks `pick` for its implementation; here the op's module gets a `pick` that wraps it.
    """
    originals = [
        (module, module.pick)
        for module in (import_module(f"microturn.kernels.{name}.op") for name in OP_NAMES)
        if hasattr(module, "pick")
    ]
    for module, pick in originals:
        module.pick = _picks(pick, wrap)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, pick in originals:
            module.pick = pick  # type: ignore[attr-defined]


def _picks(pick: Callable[..., Run], wrap: Wrap) -> Callable[..., Run]:
    def pick_wrapped(op: str, *args: Any, **kwargs: Any) -> Run:
        return wrap(op, pick(op, *args, **kwargs))

    return pick_wrapped


@dataclass
class OpTotal:
    """calls, microseconds without the ops it called itself, and torch calls it made directly."""

    calls: int = 0
    us: float = 0.0
    torch_calls: int = 0


def totals(events: Iterable[Any]) -> dict[str, OpTotal]:
    """Totals by op name over the CPU events of a profile; an op inside an op counts once."""
    found: dict[str, OpTotal] = {}
    for event in events:
        if not event.name.startswith(PREFIX):
            continue
        total = found.setdefault(event.name.removeprefix(PREFIX), OpTotal())
        inner, torch_calls = _inside(event)
        total.calls += 1
        total.us += event.cpu_time_total - inner
        total.torch_calls += torch_calls
    return dict(sorted(found.items(), key=lambda item: -item[1].us))


def _inside(event: Any) -> tuple[float, int]:
    """(us of op ranges under this event, torch calls directly under it)."""
    us, calls = 0.0, 0
    for child in event.cpu_children:
        if child.name.startswith(PREFIX):
            us += child.cpu_time_total
        else:
            calls += child.name.startswith("aten::")
            us += _inside(child)[0]
    return us, calls
