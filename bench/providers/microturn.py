"""This package's ops: kernels on a GPU, references on a CPU."""

from __future__ import annotations

import torch

from microturn.bench.providers.base import Call, Provider, Unavailable
from microturn.kernels.registry import Case, OpInputs, get


class Microturn:
    name = "microturn"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return True

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        run = get(op).run
        try:
            if device.type != "cpu":
                _ = get(op).kernel
        except ModuleNotFoundError as error:
            if error.name != f"microturn.kernels.{op}.launch":
                raise
            raise Unavailable(f"{op} has no kernel yet") from None
        return lambda: run(*inputs)


PROVIDERS: tuple[Provider, ...] = (Microturn(),)
