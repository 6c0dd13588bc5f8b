"""The plain torch references, on whatever device the bench runs."""

from __future__ import annotations

import torch

from microturn.bench.providers.base import Call, Provider
from microturn.bench.subjects import get
from microturn.kernels.registry import Case, OpInputs


class Reference:
    name = "reference"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return True

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        reference = get(op).reference
        return lambda: reference(*inputs)


PROVIDERS: tuple[Provider, ...] = (Reference(),)
