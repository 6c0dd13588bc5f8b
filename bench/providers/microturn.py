"""This package's ops: kernels on a GPU, references on a CPU."""

from __future__ import annotations

import torch

from microturn.bench.providers.base import Call, Provider
from microturn.bench.subjects import get
from microturn.kernels.registry import Case, OpInputs


class Microturn:
    name = "microturn"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return True

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        run = get(op).run
        return lambda: run(*inputs)


PROVIDERS: tuple[Provider, ...] = (Microturn(),)
