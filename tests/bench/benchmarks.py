"""The bench's cases under pytest-benchmark: `make bench`. Not collected by `make test`.

On a GPU a round is one replay of the call's graph; on a CPU the tests' small shapes run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from microturn.bench import check
from microturn.bench.providers.base import Unavailable
from microturn.bench.providers.every import names, pick
from microturn.bench.subjects import Item, case_of, get, nbytes, select
from microturn.kernels.registry import OpInputs
from microturn.kernels.testing import DTYPES, MAX_ERROR, to_device

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")

WORK = [
    pytest.param(item, name, id=f"{item.op}-{item.case}-{item.dtype}-{name}")
    for item in select(small=not GPU)
    for name in names()
    if pick([name])[0].supports(item.op, case_of(get(item.op), item.case), item.dtype)
]


@pytest.mark.parametrize(("item", "name"), WORK)
def test_time(item: Item, name: str, benchmark: Any) -> None:
    subject, (provider,) = get(item.op), pick([name])
    case = case_of(subject, item.case)
    with torch.inference_mode():
        inputs = subject.make_inputs(case, seed=0, dtype=DTYPES[item.dtype], device=DEVICE)
        wanted = check.expected(subject.reference, inputs, DEVICE)
        mine = OpInputs(*to_device(tuple(inputs), DEVICE))
        try:
            call = provider.prepare(item.op, case, item.dtype, mine, DEVICE)
        except Unavailable as reason:
            pytest.skip(str(reason))
        assert check.error(call(), wanted.result) <= MAX_ERROR[item.dtype]
        benchmark.extra_info |= {"bytes": nbytes(case, item.dtype), "flops": case.flops}
        benchmark.group = " ".join(item)
        benchmark(replayed(call))


def replayed(call: Callable[[], Any]) -> Callable[[], Any]:
    """On a GPU the call's graph, waited for."""
    if not GPU:
        return call
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> Any:
        graph.replay()
        torch.cuda.synchronize()
        return kept

    return replay
