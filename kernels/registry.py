"""One list of ops. Tests, bench and profiling walk it, so a shape or a formula exists once.

An op `name` is the folder `microturn.kernels.<name>`: `op.<name>`, `reference.<name>_reference` and
`reference.core`, `cases.CASES` and `cases.make_inputs`. Nothing is imported until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

OP_NAMES = (
    "linear",
    "rms_norm",
    "short_conv",
    "streaming_attention",
    "router",
    "grouped_experts",
    "depth_head",
    "sampling",
    "dmel",
    "causal_conv",
    "conv_transpose",
    "residual_unit",
    "rvq_quantize",
    "rvq_dequantize",
    "codec_transformer",
)


class Case(Protocol):
    """A shape an op must handle.

    `id` is sizes as key=value pairs, `reason` why it is in the list.
    """

    @property
    def id(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def flops(self) -> int: ...
    def bytes(self, itemsize: int) -> int:
        """Bytes that must move at least once, weights and state included, at `itemsize` bytes a
        value.
        """
        ...


class OpInputs(NamedTuple):
    """The arguments of one call: `op(*inputs)`."""

    x: Any
    weights: Any
    state: Any
    rows: Any


@dataclass(frozen=True)
class Op:
    """Lazy access to the parts of one op folder."""

    name: str

    def _part(self, module: str) -> Any:
        return import_module(f"microturn.kernels.{self.name}.{module}")

    @property
    def run(self) -> Callable[..., Any]:
        return getattr(self._part("op"), self.name)  # type: ignore[no-any-return]

    @property
    def reference(self) -> Callable[..., Any]:
        return getattr(self._part("reference"), f"{self.name}_reference")  # type: ignore[no-any-return]

    @property
    def core(self) -> Callable[..., Any]:
        return self._part("reference").core  # type: ignore[no-any-return]

    @property
    def cases(self) -> tuple[Case, ...]:
        return self._part("cases").CASES  # type: ignore[no-any-return]

    @property
    def make_inputs(self) -> Callable[..., OpInputs]:
        """make_inputs(case, *, seed=0, dtype=torch.float32, device="cpu") -> OpInputs."""
        return self._part("cases").make_inputs  # type: ignore[no-any-return]


OPS = {name: Op(name) for name in OP_NAMES}


def get(name: str) -> Op:
    """The op of that name. Raises KeyError naming the known ones."""
    try:
        return OPS[name]
    except KeyError:
        raise KeyError(f"unknown op {name!r}; known: {', '.join(OP_NAMES)}") from None
