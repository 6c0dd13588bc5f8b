"""Ranges by op, their totals, and the `microturn-profile` command."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from microturn.kernels.linear import linear
from microturn.kernels.registry import OP_NAMES
from microturn.profiling.cli import app
from microturn.profiling.ranges import OpTotal, op_ranges, totals


def event(name: str, us: float, *children: Any) -> Any:
    return SimpleNamespace(name=name, cpu_time_total=us, cpu_children=list(children))


def test_time_of_an_op_inside_an_op_is_counted_once() -> None:
    inner = event("op:linear", 10.0, event("aten::mm", 8.0))
    outer = event("op:depth_head", 50.0, event("aten::add", 5.0), event("glue", 30.0, inner), inner)
    assert totals([outer, inner, inner, *inner.cpu_children]) == {
        "depth_head": OpTotal(calls=1, us=30.0, torch_calls=1),
        "linear": OpTotal(calls=2, us=20.0, torch_calls=2),
    }


def test_ranges_exist_inside_the_context_only_and_change_no_result() -> None:
    x, weights = torch.randn(3, 32), torch.randn(16, 32)
    plain = linear(x, weights)
    module = import_module("microturn.kernels.linear.op")
    before = module.pick
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        linear(x, weights)
        with op_ranges():
            assert torch.equal(linear(x, weights), plain)
        linear(x, weights)
    found = totals(profiler.events() or ())
    assert found["linear"].calls == 1 and found["linear"].torch_calls >= 1
    assert module.pick is before


def test_ranges_are_taken_back_when_the_run_fails() -> None:
    modules = [import_module(f"microturn.kernels.{name}.op") for name in OP_NAMES]
    before = [module.pick for module in modules]
    with pytest.raises(ZeroDivisionError), op_ranges():
        assert all(m.pick is not pick for m, pick in zip(modules, before, strict=True))
        raise ZeroDivisionError
    assert [module.pick for module in modules] == before


def test_a_run_writes_its_reports_and_says_what_would_help(tmp_path: Path) -> None:
    out = tmp_path / "p"
    result = CliRunner().invoke(app, ["run", "--out", str(out), "--ticks", "2"])
    assert result.exit_code == 0, result.output
    assert " trained weights" in result.output and "what would help most" in result.output
    made = {"profile.json", "trace.json", "report.html", "report.md"}
    assert {path.name for path in out.iterdir()} == made
    assert json.loads((out / "profile.json").read_text())["schema"] == 1


def test_an_unknown_preset_ends_in_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "--out", str(tmp_path), "--preset", "huge"])
    assert result.exit_code == 2 and "known: interaction-tiny" in result.stderr
    assert len(result.stderr.splitlines()) == 1
