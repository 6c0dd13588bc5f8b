"""A real run of interaction-tiny taken apart: what adds up, what is named, what stays behind."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microturn.kernels.registry import OP_NAMES
from microturn.model.cost import even
from microturn.model.interaction import InteractionFamily
from microturn.profiling import document, findings
from microturn.profiling.attribution import AFTER, BETWEEN, attribute
from microturn.profiling.recorder import Event, Recorder, Step, Tick
from microturn.profiling.watch import profile
from microturn.runtime import FastClock, Runtime
from microturn.runtime.metrics import TickTiming

SUMS_TO = 0.03


def test_the_waterfall_sums_to_the_wall_time(captured: dict[str, Any]) -> None:
    assert captured["wall_from"] == "outside"
    parts, wall = findings.waterfall(captured)
    assert sum(part.ms for part in parts) == pytest.approx(wall, rel=SUMS_TO)
    assert min(part.ms for part in parts) >= 0
    without = sum(part.ms for part in parts if part.name != "append")
    assert without != pytest.approx(wall, rel=SUMS_TO)  # the bar would see a part that is lost


def test_the_lines_of_every_tick_add_up_to_its_model(captured: dict[str, Any]) -> None:
    total = np.sum([line["ms"] for line in captured["lines"]], axis=0)
    np.testing.assert_allclose(total, captured["ticks"]["model"], rtol=1e-3)


def test_every_op_is_placed_and_costed_as_the_family_says(
    captured: dict[str, Any], family: InteractionFamily
) -> None:
    found = {(line["part"], line["op"]) for line in captured["lines"] if line["op"] != BETWEEN}
    listed = {(call.part, call.op) for call in family.calls(even(2, 6, family.window_rows))}
    assert listed - found <= {("append", "rms_norm")}  # one run of norms crosses into the pass
    assert found <= listed
    lines = {(line["part"], line["op"]): line for line in captured["lines"]}
    assert lines["append", "grouped_experts"]["calls"] == family.config.trunk.num_layers
    assert lines["append", "grouped_experts"]["flops"] > lines["decode.1", "router"]["flops"] > 0
    assert all(line["floor_ms"] > 0 for key, line in lines.items() if key[1] != BETWEEN)


def test_levels_say_what_was_predicted_before_it_was_measured(captured: dict[str, Any]) -> None:
    one, two = captured["levels"]
    assert (one["sessions"], two["sessions"]) == (1, 2)
    assert one["predicted_ms_p50"] is None or one["predicted_ms_p50"] > 0
    assert two["predicted_ms_p50"] > 0 and two["fitted_ms_p50"] > 0
    assert two["measured_ms_p50"] <= two["measured_ms_p99"]
    assert captured["overhead"]["plain_ms_p50"] > 0


def test_the_trace_names_the_ops(captured: dict[str, Any], folder: Path) -> None:
    trace = json.loads((folder / "trace.json").read_text())
    assert any(e.get("name") == "op:depth_head" for e in trace["traceEvents"])
    calls = {line["op"]: line["torch_calls"] for line in captured["lines"]}
    assert calls["depth_head"] > calls["open_lines"] > 0 and calls[BETWEEN] is None


def test_a_saved_profile_is_read_back_and_foreign_ones_are_refused(
    captured: dict[str, Any], tmp_path: Path
) -> None:
    assert document.load(document.save(captured, tmp_path)) == document.load(tmp_path)
    path = tmp_path / "other.json"
    for text, word in (
        ("{", "not JSON"),
        ("{}", "no profile"),
        ('{"kind": "profile", "schema": 9}', "version 9"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=word):
            document.load(path)


def test_a_server_is_watched_and_left_as_it_was(family: InteractionFamily, tmp_path: Path) -> None:
    modules = [import_module(f"microturn.kernels.{name}.op") for name in OP_NAMES]
    before = [module.pick for module in modules]
    with Runtime(model=family, max_sessions=1, clock=FastClock()) as runtime:
        session = runtime.open()
        with profile(runtime, tmp_path / "out"):
            assert [module.pick for module in modules] != before
            for _ in range(3):
                runtime.tick()
        runtime.tick()
        assert len(list(iter(session.poll, None))) == 4
        assert runtime.metrics.watchers == () and "tick" not in vars(family)
        assert [module.pick for module in modules] == before
    made = document.load(tmp_path / "out")
    assert len(made["ticks"]["wall"]) + made["left_out"] == 3 and made["wall_from"] == "phases"
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_nothing_stays_installed_when_the_watched_block_raises(family: InteractionFamily) -> None:
    with Runtime(model=family, max_sessions=1, clock=FastClock()) as runtime:
        with pytest.raises(ZeroDivisionError), Recorder(runtime):
            raise ZeroDivisionError
        assert runtime.metrics.watchers == () and "tick" not in vars(family)


def a_tick(*events: tuple[str, int, int], end: int = 100, steps: int = 1) -> Tick:
    step = Step(None, 0, end, [Event(*event) for event in events])
    return Tick(TickTiming(0, 0, 0, end, 0, 0), 1, [step] * steps)


def test_time_between_ops_goes_to_the_op_it_leads_to() -> None:
    ticks = [a_tick(("linear", 10, 30), ("linear", 35, 40), ("router", 60, 90)) for _ in range(3)]
    odd = [a_tick(("router", 0, 90)), a_tick(("linear", 0, 1), steps=2)]
    found = attribute([*ticks, *odd], object(), 4)
    assert len(found.ticks) == 3
    lines = {line.key: (line.calls, line.ns[0]) for line in found.lines}
    assert lines == {
        ("", "linear"): (2, 25),
        ("", "router"): (1, 30),
        ("", BETWEEN): (0, 35),
        (AFTER, BETWEEN): (0, 10),
    }
    assert {line.bytes for line in found.lines if line.key.op != BETWEEN} == {None}
    with pytest.raises(ValueError, match="no tick stepped the model exactly once"):
        attribute(odd[1:], object(), 4)
