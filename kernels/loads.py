"""How a compiled kernel loads from each of its pointers, read from its PTX.

ptxas keeps the width of a load, so what PTX says holds for the machine code. An address is followed
back through the arithmetic that makes it, along every way it may be made and into the callers of a
function, to the pointers among the kernel's parameters. What a kernel hands to the copy engine
counts as loaded 16 bytes at a time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

WIDE = 16
"""Bytes a thread that a load of streamed data brings."""


class Load(NamedTuple):
    """One instruction: the names of the pointers it may read through, and bytes a thread.

    A pointer that was itself read from memory is named by that memory, as "*table_ptr".
    """

    pointers: frozenset[str]
    nbytes: int


def parameters(compiled: Any) -> dict[str, str]:
    """Triton's types of a CompiledKernel's parameters, as "!tt.ptr<bf16>", by name, in order."""
    head = _HEAD.search(compiled.asm["ttir"])
    if head is None:
        raise RuntimeError(f"no function in the Triton text of {compiled.name}")
    return dict(_PARAMETER.findall(head[1]))


def loads_of(compiled: Any) -> tuple[Load, ...]:
    """Of Triton's CompiledKernel."""
    return read_loads(compiled.asm["ptx"], tuple(parameters(compiled)))


@lru_cache(4)
def read_loads(ptx: str, names: tuple[str, ...]) -> tuple[Load, ...]:
    """names: of the kernel's parameters, in their order; Triton adds others behind them.

    Raises ValueError for PTX without a kernel.
    """
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise ValueError("no kernel in this PTX")
    code = _Code()
    for function, operation, operands in _instructions(ptx):
        code.add(function, operation, operands)
    pointers = {
        f"{entry[1]}#{number}": names[int(number)]
        for number in _POINTER.findall(ptx)
        if int(number) < len(names)
    }
    return tuple(Load(code.pointers(address, pointers), nbytes) for address, nbytes in code.loads)


_HEAD = re.compile(r"tt\.func public @\w+\((.*?)\)\s+attributes", re.DOTALL)
_PARAMETER = re.compile(r"%([\w.]+): (!tt\.[^ ]+|[if]\d+)")
_ENTRY = re.compile(r"\.entry ([\w$]+)\(")
_FUNCTION = re.compile(r"\.(?:entry|func) (?:\(.*?\) )?([\w$]+)\(?$")
_POINTER = re.compile(r"^\s*\.param .*\.ptr.*_param_(\d+)", re.MULTILINE)
_GUARD = re.compile(r"^@!?%\w+\s+")
_REGISTER = re.compile(r"%\w+")
_OWN = re.compile(r"_param_(\d+)")
_CALL = re.compile(r"([\w$]+), *\((.*?)\)$")
_PASSED = re.compile(r"\bparam(\d+)")
_ADDRESS = re.compile(r"\[([^\]]*)\]")
_COPIED = re.compile(r"\],\s*(0x[0-9a-f]+|\d+)")
_VECTOR = re.compile(r"\.v(\d)")
_NO_RESULT = ("st.", "red.", "prefetch", "setp", "bra", "bar", "mbarrier")


class _Code:
    """What comes from what: registers "function:%r1", parameters "function#0".

    made   results of arithmetic -> their operands
    read   what was loaded -> the registers of its address
    loads  (registers of the address, bytes)
    """

    def __init__(self) -> None:
        self.made: dict[str, set[str]] = defaultdict(set)
        self.read: dict[str, set[str]] = defaultdict(set)
        self.loads: list[tuple[set[str], int]] = []
        self._passed: dict[str, set[str]] = {}

    def add(self, function: str, operation: str, operands: str) -> None:
        def registers(text: str) -> set[str]:
            return {f"{function}:{name}" for name in _REGISTER.findall(text)}

        if operation.startswith("call"):
            if call := _CALL.search(operands):
                for number, sources in self._passed.items():
                    self.made[f"{call[1]}#{number}"] |= sources
            self._passed = {}
        elif operation.startswith("st.param"):
            if passed := _PASSED.search(operands):
                self._passed[passed[1]] = registers(operands)
        elif own := _OWN.search(operands):
            for register in registers(operands):
                self.made[register].add(f"{function}#{own[1]}")
        elif operation.startswith("cp.async") and (size := _COPIED.search(operands)):
            self.loads.append((registers(_ADDRESS.findall(operands)[1]), int(size[1], 0)))
        elif operation.startswith("tensormap.replace.tile.global_address"):
            self.loads.append((registers(operands.rpartition(",")[2]), WIDE))
        elif operation.startswith("ld.") and not operation.startswith(("ld.shared", "ld.param")):
            results, _, address = operands.partition("[")
            self.loads.append((registers(address), _width(operation)))
            for register in registers(results):
                self.read[register] |= registers(address)
        elif not operation.startswith(_NO_RESULT):
            end = "}," if operands.startswith("{") else ","
            results, comma, sources_text = operands.partition(end)
            for register in registers(results) if comma else ():
                self.made[register] |= registers(sources_text)

    def pointers(self, address: Iterable[str], names: dict[str, str]) -> frozenset[str]:
        """names: of the kernel's pointers among what addresses are made of."""
        origins = self._origins(address)
        found = {names[origin] for origin in origins if origin in names}
        if not found:  # what was read is the pointer itself; else it is an offset
            sources = set().union(*(self.read.get(origin, ()) for origin in origins))
            behind = self._origins(sources)
            found = {f"*{names[origin]}" for origin in behind if origin in names}
        return frozenset(found)

    def _origins(self, address: Iterable[str]) -> set[str]:
        """All that it is made of, without what it was read through."""
        seen: set[str] = set()
        left = list(address)
        while left:
            register = left.pop()
            if register not in seen:
                seen.add(register)
                left += self.made.get(register, ())
        return seen


def _instructions(ptx: str) -> Iterator[tuple[str, str, str]]:
    """Function, operation and operands, without guards, comments and labels."""
    function = ""
    for line in ptx.splitlines():
        line = line.partition("//")[0].rstrip()
        if head := _FUNCTION.search(line):
            function = head[1]
            continue
        for text in line.split(";"):
            text = _GUARD.sub("", text.strip().removeprefix("{").strip())
            operation, _, operands = text.replace("\t", " ").partition(" ")
            if operands and not operation.startswith((".", "$")):
                yield function, operation, operands.strip()


def _width(operation: str) -> int:
    """Bytes of "ld.global.L1::evict_first.v4.b32"."""
    vector = _VECTOR.search(operation)
    bits = int(re.sub(r"\D", "", operation.rpartition(".")[2]))
    return bits // 8 * (int(vector[1]) if vector else 1)
