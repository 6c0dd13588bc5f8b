"""Where in a tick each kernel of its graph stands: index -> pass, layer, op.

The table is made while the program runs or is captured: Triton launches are recorded where they
are launched, torch's operators where they are dispatched, and modules say where they are. One line
is one launch as far as the host can tell; the few operators of torch that launch several kernels
(a sum over many values) count once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

import microturn.kernels.rows
from microturn.kernels.launch import Launch, recording


class Place(NamedTuple):
    """One kernel. In the order of launches, so that the index in the list is that in the graph.

    passed  "features" before the first pass, "append", then "decode 1" and on; "codec"; each with
            what follows it
    layer   of the trunk, None outside
    module  path of the innermost module, "" outside
    op      folder in kernels/, or "torch"
    kernel  its name, of an operator of torch the operator's
    """

    passed: str
    layer: int | None
    module: str
    op: str
    kernel: str


_LAYER = re.compile(r"trunk\.layers\.(\d+)")


class _Placer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fills `places`; `launches` grows beside it."""

    def __init__(self, model: nn.Module, launches: Sequence[Launch]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[Place] = []
        self._names = {id(part): name for name, part in model.named_modules()}
        self._launches = launches
        self._seen = 0
        self._inside: list[str] = [""]
        self._passed = "features"
        self._passes = 0

    def enter(self, module: nn.Module, given: Any) -> None:
        name = self._names.get(id(module))
        if name is None:
            return
        self.drain()
        self._inside.append(name)
        if name == "trunk":
            self._passed = f"decode {self._passes}" if self._passes else "append"
            self._passes += 1
        elif name == "codec":
            self._passed = "codec"

    def leave(self, module: nn.Module, given: Any, made: Any) -> None:
        if id(module) in self._names:
            self.drain()
            self._inside.pop()

    def drain(self) -> None:
        """The launches since the last look."""
        for launch in self._launches[self._seen :]:
            self._put(op_of(launch.name), launch.name)
        self._seen = len(self._launches)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.drain()
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if _launches(func, (*args, *kwargs.values()), made):
            self._put("torch", func.overloadpacket.__name__)
        return made

    def _put(self, op: str, kernel: str) -> None:
        module = self._inside[-1]
        found = _LAYER.match(module)
        layer = int(found[1]) if found else None
        self.places.append(Place(self._passed, layer, module, op, kernel))


def _launches(func: Any, given: Sequence[Any], made: Any) -> bool:
    """Whether an operator moves numbers: it writes one of its arguments, or made memory and filled
    it.
    """
    if func.overloadpacket.__name__.startswith(("empty", "new_empty")):
        return False
    if func._schema.is_mutable:
        return True
    held = {t.untyped_storage()._cdata for t in _tensors(given)}
    return any(t.numel() and t.untyped_storage()._cdata not in held for t in _tensors((made,)))


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


@contextmanager
def placing(model: nn.Module) -> Iterator[list[Place]]:
    """Inside, a tick of a family around `model` fills the list; whole when the block is left."""
    with recording() as launches:
        placer = _Placer(model, launches)
        hooks = [
            register_module_forward_pre_hook(placer.enter),
            register_module_forward_hook(placer.leave),
        ]
        try:
            with placer:
                yield placer.places
            placer.drain()
        finally:
            for hook in hooks:
                hook.remove()


@cache
def op_of(kernel: str) -> str:
    """The folder in kernels/ that launches a Triton kernel; "" for one from elsewhere."""
    root = Path(microturn.kernels.rows.__file__).parent
    launched = re.compile(rf"\blaunch\(\s*(kernel\.)?{re.escape(kernel)},")
    for path in sorted(root.glob("*/launch.py")):
        if launched.search(path.read_text("utf-8")):
            return path.parent.name
    return ""
