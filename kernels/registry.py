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
    "conv_residual_norm",
    "qkvr_prologue",
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
    "open_lines",
    "commit_lines",
)


@dataclass(frozen=True)
class Bar:
    """What a case must reach on an H200, in its op's first dtype.

    Where time and fraction disagree, the fraction governs.

    us           a call
    of_floor     the fraction of its floor
    times_peer   times faster than the fastest peer
    tflops       TFLOP/s
    times_beside times the time of the case `beside` (an id of the same op), at most
    fp8          the same where weights, or keys and values, have eight bits; None: nothing is asked
    """

    us: float | None = None
    of_floor: float | None = None
    times_peer: float | None = None
    tflops: float | None = None
    times_beside: float | None = None
    beside: str | None = None
    fp8: Bar | None = None


class Case(Protocol):
    """A shape an op must handle.

    `id` is sizes as key=value pairs, `reason` why it is in the list, `bar` what it must reach.
    """

    @property
    def id(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def bar(self) -> Bar | None: ...
    @property
    def flops(self) -> int: ...
    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Bytes that must move at least once, weights and state included, at `itemsize` bytes a
        value; `streamed` bytes a value of what is streamed (weights, or keys and values), where
        that is stored narrower.
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
    def kernel(self) -> Callable[..., Any]:
        """The Triton launcher, with the op's signature; imports Triton."""
        return getattr(self._part("launch"), f"{self.name}_kernel")  # type: ignore[no-any-return]

    @property
    def core(self) -> Callable[..., Any]:
        return self._part("reference").core  # type: ignore[no-any-return]

    @property
    def cases(self) -> tuple[Case, ...]:
        return self._part("cases").CASES  # type: ignore[no-any-return]

    @property
    def bench_cases(self) -> tuple[Case, ...]:
        """Shapes of the real models: measured on a GPU, compiled where there is none."""
        return getattr(self._part("cases"), "BENCH_CASES", ())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """In which the bench cases run: names in `microturn.kernels.testing.DTYPES`."""
        return getattr(self._part("cases"), "DTYPES", ("bf16",))

    @property
    def narrow_loads(self) -> dict[str, str]:
        """What may be streamed by loads of less than 16 bytes, as "kernel.pointer", and why."""
        return getattr(self._part("cases"), "NARROW_LOADS", {})

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
