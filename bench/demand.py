"""What a compiled kernel asks for, read from Triton's text of it: operations of its dots and bytes
of its loads and stores, as far as the lengths of its loops are written in the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

SEARCH = 32
"""Rounds of a binary search among int32."""
LITTLE = 512
"""Bytes a round of a search moves at most."""


class Tile(NamedTuple):
    """One product: its flops, the bytes it moves, and those of them that move under a mask."""

    flops: int
    nbytes: int
    masked: int


@dataclass(frozen=True)
class Demand:
    """Of one program, of the longer branch where the code has two.

    flops, nbytes  None where a loop around them is as long as the data say
    tile           the largest loop of written length around dots
    """

    flops: int | None = None
    nbytes: int | None = None
    tile: Tile | None = None


@dataclass
class _Sum:
    flops: int = 0
    nbytes: int = 0
    masked: int = 0
    counted: bool = True
    """Whether every loop with dots in it has a written length."""
    bounded: bool = True
    """The same of loads and stores."""
    tile: Tile | None = None

    def add(self, other: _Sum) -> None:
        self.flops += other.flops
        self.nbytes += other.nbytes
        self.masked += other.masked
        self.counted &= other.counted
        self.bounded &= other.bounded
        self.tile = max(self.tile, other.tile, key=lambda tile: tile or (0,))

    def times(self, count: int | None) -> _Sum:
        """A loop of so many rounds; None: nobody knows, but a search has SEARCH at most."""
        if count is None and not self.flops and self.nbytes <= LITTLE:
            count = SEARCH
        if count is None:
            counted, bounded = self.counted and not self.flops, self.bounded and not self.nbytes
            return replace(self, counted=counted, bounded=bounded)
        made = replace(
            self,
            flops=self.flops * count,
            nbytes=self.nbytes * count,
            masked=self.masked * count,
        )
        if made.flops and made.counted:
            made.tile = Tile(made.flops, made.nbytes, made.masked)
        return made


@dataclass
class _Region:
    """Lines and regions in their order; branches: the other arm of an `if`."""

    head: str
    items: list[str | _Region] = field(default_factory=list)
    other: _Region | None = None


_FUNC = re.compile(r"tt\.func (\w+ )?.*?@([\w.\"]+)\(")
_FOR = re.compile(r"scf\.for %\S+ = (\S+) to (\S+) step (\S+)")
_CONSTANT = re.compile(r"^%c(-?\d+)(?:_i\d+)?(?:_\d+)?$")
_CALL = re.compile(r"tt\.call @([\w.\"]+)\(")
_DOT = re.compile(r"tt\.dot .*?: tensor<([\dx]+)x\w+> \* tensor<([\dx]+)x\w+>")
_MOVED = re.compile(r"tt\.(load|store) (.*?) : (?:tensor<([\dx]+)x!tt\.ptr<(\w+)>|!tt\.ptr<(\w+)>)")
_COPIED = re.compile(r"tt\.descriptor_(?:load|store) .*!tt\.tensordesc<tensor<([\dx]+)x(\w+)>>")


def demand(ttir: str) -> Demand:
    """Of the kernel of this text."""
    functions: dict[str, _Region] = {}
    main = None
    for region in _regions(iter(ttir.splitlines())):
        found = _FUNC.search(region.head)
        if found is None:
            continue
        functions[found[2]] = region
        if (found[1] or "").strip() == "public":
            main = region
    if main is None:
        return Demand()
    total = _evaluate(main, functions)
    return Demand(
        total.flops if total.counted else None,
        total.nbytes if total.bounded else None,
        total.tile,
    )


def element_bytes(name: str) -> float:
    """Of "bf16", "i8", "f8E4M3FN"."""
    return int(re.sub(r"^[a-z]+(\d+).*", r"\1", name)) / 8


def _regions(lines: Iterator[str]) -> Iterator[_Region]:
    """The functions of a module."""
    for line in lines:
        if "tt.func" in line:
            yield _read(line, lines)


def _read(head: str, lines: Iterator[str]) -> _Region:
    """Up to the brace that closes it, with the arm that follows."""
    region = _Region(head)
    for line in lines:
        text = line.split(" loc(")[0].strip()
        if text.startswith("}"):
            if text.endswith("{"):  # else
                region.other = _read(text, lines)
            return region
        if text.endswith("{"):
            region.items.append(_read(text, lines))
        else:
            region.items.append(text)
    return region


def _evaluate(region: _Region, functions: dict[str, _Region]) -> _Sum:
    total = _Sum()
    for item in region.items:
        total.add(_of_line(item, functions) if isinstance(item, str) else _nested(item, functions))
    return total


def _nested(region: _Region, functions: dict[str, _Region]) -> _Sum:
    inside = _evaluate(region, functions)
    if region.other is not None:
        arm = _evaluate(region.other, functions)
        tiles = [arm for arm in (inside.tile, arm.tile) if arm is not None]
        inside = _Sum(
            max(inside.flops, arm.flops),
            max(inside.nbytes, arm.nbytes),
            max(inside.masked, arm.masked),
            inside.counted and arm.counted,
            inside.bounded and arm.bounded,
            max(tiles, default=None),
        )
    if "scf.while" in region.head:
        return inside.times(None)
    if (found := _FOR.search(region.head)) is not None:
        return inside.times(_trips(*found.groups()))
    return inside


def _trips(*bounds: str) -> int | None:
    numbers = [_CONSTANT.match(bound) for bound in bounds]
    if not all(numbers):
        return None
    first, last, step = (int(number[1]) for number in numbers if number)
    return max(0, -(-(last - first) // step))


def _of_line(line: str, functions: dict[str, _Region]) -> _Sum:
    if (found := _CALL.search(line)) is not None and found[1] in functions:
        return _evaluate(functions[found[1]], functions)
    if (found := _DOT.search(line)) is not None:
        left, right = ([int(n) for n in shape.split("x")] for shape in found.groups())
        return _Sum(flops=2 * prod(left) * right[-1])
    if (found := _MOVED.search(line)) is not None:
        what, operands, shape, element, single = found.groups()
        count = prod(int(n) for n in shape.split("x")) if shape else 1
        nbytes = int(count * element_bytes(element or single))
        masked = operands.split("{")[0].count("%") > (1 if what == "load" else 2)
        return _Sum(nbytes=nbytes, masked=nbytes * masked)
    if (found := _COPIED.search(line)) is not None:
        count = prod(int(n) for n in found[1].split("x"))
        return _Sum(nbytes=int(count * element_bytes(found[2])))
    return _Sum()
