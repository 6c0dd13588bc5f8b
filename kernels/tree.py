"""The tensors inside an op's arguments and results: tuples, lists and dataclasses of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor, in order of fields."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from tensors(part)
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from tensors(getattr(tree, field.name))


def map_tensors(function: Callable[[Tensor], Tensor], tree: T) -> T:
    """The same tree with every tensor replaced; what is no tensor stays as it is.

    A tensor that occurs twice (a page table shared by two arenas) is replaced once.
    """
    done: dict[int, Tensor] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            if id(node) not in done:
                done[id(node)] = function(node)
            return done[id(node)]
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return type(node)(*(walk(part) for part in node))
        if isinstance(node, tuple | list):
            return type(node)(walk(part) for part in node)
        if is_dataclass(node) and not isinstance(node, type):
            return type(node)(
                **{f.name: walk(getattr(node, f.name)) for f in fields(node) if f.init}
            )
        return node

    return walk(tree)  # type: ignore[no-any-return]
