"""A plan agrees with the published floors and with what the runtime would take; each number says
where it comes from.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from microturn.model.cost import even
from microturn.profiling.cli import app
from microturn.profiling.gpus import GPUS, gpu
from microturn.profiling.plan import (
    ATTAINED,
    Level,
    call_bytes,
    family_of,
    plan,
    sizing,
    to_json,
    weight_bytes,
)

KV_MS = 0.74
"""Of a pass of 64 sessions at 8K keys, a rank of eight (spec/inkling.md 4.3)."""


def published() -> Level:
    """The tick of spec/interaction.md section 6."""
    made = plan("interaction-small", gpu("H100"), count=8, context=8192, dtype="fp8")
    return next(level for level in made.levels if level.sessions == 64)


def test_floors_are_the_published_ones() -> None:
    level = published()
    assert level.parts["append"] - KV_MS == pytest.approx(9.7, rel=0.06)
    assert level.parts["decode.1"] - KV_MS == pytest.approx(7.7, rel=0.06)
    assert level.exchange_ms == pytest.approx(168 * 8e-3, rel=0.6) and level.exchange_ms > 1.34
    assert 0.15 < (level.floor_ms + level.exchange_ms) / 100 < 0.25  # about a fifth of the tick
    assert level.binds == "bytes"


def test_keys_and_values_cost_what_is_published() -> None:
    family = family_of("interaction-small", 8, 100, 8192, "fp8")
    calls = family.calls(even(64, 192, family.window_rows))
    kv = [c for c in calls if c.op == "streaming_attention" and c.part == "decode.1"]
    assert sum(call_bytes(c, "fp8") for c in kv) / 1e9 == pytest.approx(2.47, rel=0.02)


def test_weights_have_the_published_bytes() -> None:
    """34.6 GB of text trunk an eighth, beside it what every rank holds whole."""
    family = family_of("interaction-small", 8, 100, 8192, "fp8")
    trunk = weight_bytes(family.model.trunk) / 1e9
    assert 32.5 < trunk < 34.6
    assert weight_bytes(family.model) / 1e9 == pytest.approx(34.6, rel=0.03)


def test_weights_are_counted_as_the_runtime_stores_them() -> None:
    mini = {d: family_of("interaction-mini", 1, 100, 8192, d) for d in ("fp8", "bf16")}
    sizes = {dtype: weight_bytes(family.model) for dtype, family in mini.items()}
    values = sum(p.numel() for p in mini["bf16"].model.parameters())
    assert sizes["bf16"] == pytest.approx(2 * values, rel=1e-5)
    assert 0.5 * sizes["bf16"] < sizes["fp8"] < 0.75 * sizes["bf16"]


def test_sessions_are_what_fits_memory_and_time() -> None:
    h100 = gpu("H100")
    made = plan("interaction-mini", h100, dtype="bf16")
    numbers = {number.name: number.value for number in made.numbers}
    assert made.sessions == numbers["of them in time"] == numbers["sessions that memory holds"]
    last = made.levels[-1]
    assert last.sessions == made.sessions and last.memory_gb <= 80 and last.step_ms <= 95
    assert [level.step_ms for level in made.levels] == sorted(lv.step_ms for lv in made.levels)
    slow = h100._replace(read_gbps=600.0)
    late = plan("interaction-mini", slow, dtype="bf16")
    assert late.limit == "time" and late.sessions < made.sessions
    assert plan("interaction-mini", slow, dtype="bf16", attained=1.0).sessions > late.sessions
    assert plan("interaction-mini", slow, dtype="bf16", tick_ms=200).sessions > late.sessions
    assert not plan("interaction-mini", h100._replace(memory_gb=4), dtype="bf16").levels


def test_a_tick_expects_more_than_its_floor_and_says_why() -> None:
    for level in plan("interaction-mini", gpu("A100"), dtype="fp8").levels:
        beside = level.exchange_ms + level.launch_ms
        assert level.step_ms == pytest.approx(level.floor_ms / ATTAINED + beside)
        assert level.floor_ms == pytest.approx(sum(level.parts.values()))
        assert level.exchange_ms == 0


def test_every_number_says_where_it_comes_from() -> None:
    made = plan("interaction-mini", gpu("4090"))
    assert {n.mark for n in made.numbers} == {"formula", "datasheet", "published", "assumed"}
    assert all(n.note for n in made.numbers if n.mark in ("datasheet", "published"))
    document = json.loads(to_json(made))
    assert (document["schema"], document["kind"]) == (1, "plan")


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(ValueError, match="unknown GPU 'TPU'; known: B200"):
        gpu("TPU")
    with pytest.raises(ValueError, match="8 ranks cannot share evenly"):
        plan("interaction-mini", gpu("h100"), count=8)
    with pytest.raises(ValueError, match="bf16 or fp8, got 'fp4'"):
        plan("interaction-mini", gpu("h100"), dtype="fp4")
    with pytest.raises(ValueError, match="above 0 and at most 1, got 2"):
        plan("interaction-mini", gpu("h100"), attained=2)


def test_a_larger_memory_never_holds_fewer() -> None:
    found = sizing([GPUS["4090"], GPUS["H200"]], [("interaction-mini", "fp8", 100, 8192)])
    small, large = (row[2] for row in found.rows)
    assert small.startswith("1 x: ") and large.startswith("1 x: ")
    assert int(small.split()[2]) < int(large.split()[2])


def test_the_command_plans_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    given = ["plan", "--preset", "interaction-mini", "--count", "1", "--out", str(path)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0 and "Nothing of this was measured" in " ".join(
        result.output.split()
    )
    assert json.loads(path.read_text())["gpu"] == "H100"
    result = CliRunner().invoke(app, ["plan", "--gpu", "abacus"])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
