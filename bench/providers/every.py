"""The list of providers: ours first, then the peers of `microturn.bench.peers`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from microturn.bench.providers.base import Provider

OURS = ("microturn.bench.providers.microturn", "microturn.bench.providers.reference")


def every() -> tuple[Provider, ...]:
    """Each module listed has a tuple PROVIDERS. A peer's module imports without its library."""
    modules = OURS
    try:
        modules += tuple(import_module("microturn.bench.peers").MODULES)
    except ModuleNotFoundError as error:
        if error.name != "microturn.bench.peers":
            raise
    return tuple(p for name in modules for p in import_module(name).PROVIDERS)


UNASKED = ("reference",)
"""Measured only by name: slow, and no rival."""


def names(asked: Sequence[str] = ()) -> list[str]:
    """The names to measure, in the order of `every`. Raises KeyError naming the known ones."""
    return [p.name for p in pick(asked) if asked or p.name not in UNASKED]


def pick(names: Sequence[str]) -> tuple[Provider, ...]:
    """Those of these names, in the order of `every`; of none, all. Raises KeyError."""
    known = every()
    for name in names:
        if name not in [p.name for p in known]:
            raise KeyError(f"unknown provider {name!r}; known: {', '.join(p.name for p in known)}")
    return tuple(p for p in known if p.name in names) if names else known
