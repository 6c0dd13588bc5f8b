"""What the bench asks of everyone who computes an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from microturn.kernels.registry import Case, OpInputs

Call = Callable[[], Any]
"""One call of an op, ready to be repeated and captured: no arguments, no host sync."""


class Unavailable(Exception):
    """A provider cannot run here. Its text is the reason shown in the null row: the import error,
    the compiler's error, or what the case asks that the library does not do.
    """


class Provider(Protocol):
    """One implementation of one or more ops.

    A module of providers imports without its library: `supports` answers from names and sizes
    alone, and only `prepare` imports what it needs.
    """

    @property
    def name(self) -> str:
        """As in results: microturn, reference, torch_grouped_mm, flash_attn_3, ..."""
        ...

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        """Whether this is its work at all; False gives no row. dtype: a name in
        `microturn.kernels.testing.DTYPES`.
        """
        ...

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        """Lays weights out as the library wants them and gives a call that does the op's
        arithmetic on the numbers of `inputs` (on `device`).

        What the call returns has the tensors of the op's own result, in its order and shapes
        (dtypes may differ); it is compared with the reference's. `inputs` is not shared with
        other providers: the call may update its state in place, every time it is called.
        Raises Unavailable(reason).
        """
        ...


@runtime_checkable
class DoesLess(Provider, Protocol):
    """A provider whose library leaves out a part of the op (attention without the relative bias,
    say). It is compared with `expected` instead, and its rows say what is missing.
    """

    def expected(self, op: str, case: Case, dtype: str, inputs: OpInputs) -> tuple[Any, str] | None:
        """(what the call should return, from fp32 arithmetic on the numbers of `inputs`; what is
        left out, in words). None: for this op the provider does all of it.
        """
        ...
