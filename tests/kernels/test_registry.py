"""The registry is the folders, and every op keeps the one contract."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.kernels.registry import OP_NAMES, OPS, Case, OpInputs, get

KERNELS = Path(__file__).parents[2] / "kernels"
ALL_CASES = [(name, case) for name in OP_NAMES for case in OPS[name].cases]


def tensors(result: Any) -> Iterator[Tensor]:
    """The tensors inside a result: alone, in a tuple or a dataclass."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for part in result:
            yield from tensors(part)
    elif is_dataclass(result):
        for field in fields(result):
            yield from tensors(getattr(result, field.name))


def test_every_op_folder_is_registered() -> None:
    assert sorted(OP_NAMES) == sorted(path.parent.name for path in KERNELS.glob("*/op.py"))


@pytest.mark.parametrize("name", OP_NAMES)
def test_an_op_has_all_its_parts(name: str) -> None:
    op = get(name)
    assert callable(op.reference)
    assert callable(op.core)
    assert callable(op.make_inputs)
    assert getattr(__import__(f"microturn.kernels.{name}", fromlist=[name]), name) is op.run


@pytest.mark.parametrize("name", OP_NAMES)
def test_an_op_has_the_one_signature(name: str) -> None:
    for function in (get(name).run, get(name).reference):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == ["x", "weights", "state", "rows", "out"]
        kinds = [p.kind for p in parameters.values()]
        assert kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 4 + [
            inspect.Parameter.KEYWORD_ONLY
        ]
        assert parameters["out"].default is None


@pytest.mark.parametrize("name", OP_NAMES)
def test_cases_are_named_once_and_say_why(name: str) -> None:
    cases = get(name).cases
    assert cases
    assert all(case.id and case.reason for case in cases)
    assert len({case.id for case in cases}) == len(cases)
    assert all("=" in part for case in cases for part in case.id.split(","))


@pytest.mark.parametrize(("name", "case"), ALL_CASES, ids=lambda v: getattr(v, "id", v))
def test_costs_are_counted(name: str, case: Case) -> None:
    """No cost is negative, wider values move more bytes, and work without bytes is impossible."""
    assert isinstance(case.flops, int)
    assert isinstance(case.bytes(2), int)
    assert case.flops >= 0
    assert 0 <= case.bytes(2) <= case.bytes(4)
    assert case.bytes(2) > 0 or case.flops == 0


@pytest.mark.parametrize("name", OP_NAMES)
def test_some_case_costs_something(name: str) -> None:
    costs = [(case.flops, case.bytes(2), case.bytes(4)) for case in get(name).cases]
    assert any(flops > 0 and narrow < wide for flops, narrow, wide in costs)


@pytest.mark.parametrize(("name", "case"), ALL_CASES, ids=lambda v: getattr(v, "id", v))
@torch.inference_mode()
def test_a_case_runs_and_is_finite(name: str, case: Case) -> None:
    inputs = get(name).make_inputs(case)
    assert isinstance(inputs, OpInputs)
    results = list(tensors(get(name).run(*inputs)))
    assert results
    for result in results:
        if result.is_floating_point():
            assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("name", OP_NAMES)
def test_a_seed_fixes_the_inputs(name: str) -> None:
    cases = sorted(get(name).cases, key=lambda case: case.bytes(4))
    case = cases[len(cases) // 2]
    first, again, other = (
        [t.nan_to_num(0.5) for t in tensors(tuple(get(name).make_inputs(case, seed=seed)))]
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_unknown_op_names_the_known() -> None:
    with pytest.raises(KeyError, match=r"no_such_op.*linear"):
        get("no_such_op")
