"""A plan beside a measured capacity, of machines whose law is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pytest
from profiles import made_up
from typer.testing import CliRunner

from microturn.model.cost import even
from microturn.model.interaction import preset
from microturn.profiling import agreement, document
from microturn.profiling.cli import app
from microturn.profiling.gpus import gpu
from microturn.profiling.plan import family_of, floors, plan

TINY = "interaction-tiny"
ATTAINED = {"streaming_attention": 0.15, "grouped_experts": 0.3}
REST, FIXED, MARGIN = 0.5, 14.0, 5.0
COUNTS = (1, 2, 3, 4, 6)


@cache
def law(sessions: int) -> tuple[dict[str, dict[str, float]], float]:
    """By op ms, floor, bytes and flops of a tick, windows full, and the tick's ms."""
    family = family_of(TINY, 1, 100, preset(TINY).trunk.global_window, "fp32")
    machine = gpu("H100")._replace(read_gbps=7.0, tflops=0.06)
    found: dict[str, dict[str, float]] = {}
    work = even(sessions, 3 * sessions, family.window_rows)
    for call, nbytes, ms in floors(family.calls(work), machine, "fp32"):
        op = found.setdefault(call.op, dict.fromkeys(("ms", "floor_ms", "bytes", "flops"), 0.0))
        each = {"ms": ms / ATTAINED.get(call.op, REST), "floor_ms": ms, "bytes": nbytes}
        for name, value in {**each, "flops": call.case.flops}.items():
            op[name] += value
    return found, FIXED + sum(op["ms"] for op in found.values())


def profile() -> dict[str, Any]:
    ops, wall = law(1)
    made = made_up(**{op: values["ms"] for op, values in ops.items()})
    for line in made["lines"]:
        line |= {k: v for k, v in ops[line["op"]].items() if k != "ms"}
    made["ticks"]["wall"] = [wall] * len(made["ticks"]["wall"])
    made["ceilings"] |= {"read_gbps": 7.0, "tflops": 0.06}
    return made | {"schema": document.SCHEMA, "kind": document.KIND, "device": "Abacus 2 cores"}


def capacity(
    took: Callable[[int], float], device: str, name: str = TINY, dtype: str = "fp32"
) -> dict[str, Any]:
    """As the suite writes it, found by trying every number."""
    most = len(list(takewhile(lambda n: took(n) + MARGIN <= 100, count(1))))
    rows = [
        {
            "op": "capacity",
            "case": f"preset={name},S={n},tick_ms=100,clock=fast",
            "dtype": dtype,
            "sessions": n,
            "busy_ms_p50": took(n),
        }
        for n in sorted({*COUNTS, most} - {0})
    ]
    meta = {"device": device, "memory_gb": 25.0, "capacity": most}
    return {"schema": 1, "suite": "capacity", "meta": meta, "rows": rows}


def asked(folder: Path, found: dict[str, Any], *more: str) -> Any:
    (folder / "capacity.json").write_text(json.dumps(found))
    given = ["plan", "--measured", str(folder / "capacity.json"), "--preset", found["rows"][0]
             ["case"].split(",")[0].removeprefix("preset="), *more]  # fmt: skip
    return CliRunner().invoke(app, given)


def test_a_cpu_that_was_profiled_with_one_session_is_planned_for_many(tmp_path: Path) -> None:
    document.save(profile(), tmp_path)
    found = capacity(lambda n: law(n)[1], "Abacus 2 cores")
    most = found["meta"]["capacity"]
    assert most > 2
    out = tmp_path / "plan.json"
    result = asked(tmp_path, found, "--profile", str(tmp_path), "--out", str(out))
    words = " ".join(result.output.split())
    assert result.exit_code == 0, result.output
    assert f"Planned {most} sessions, measured {most}: +0%, within 15%." in words
    assert "Rates are the profile's" in words
    made = json.loads(out.read_text())
    planned = {level["sessions"]: level["step_ms"] for level in made["levels"]}
    assert all(planned[n] == pytest.approx(law(n)[1], rel=0.01) for n in COUNTS)
    marks = {number["name"]: number["mark"] for number in made["numbers"]}
    assert marks["memory rate"] == "measured" and marks["attained by linear"] == "fitted"
    assert "assumed" not in marks.values()


def test_a_machine_that_slows_down_beside_the_plan_is_told(tmp_path: Path) -> None:
    document.save(profile(), tmp_path)
    found = capacity(lambda n: law(n)[1] * (1 + 0.4 * (n > 1)), "Abacus 2 cores")
    result = asked(tmp_path, found, "--profile", str(tmp_path))
    assert result.exit_code == 1 and "NOT within 15%" in " ".join(result.output.split())


def test_a_gpu_is_planned_from_its_datasheet() -> None:
    h200 = gpu("H200")._replace(read_gbps=300.0)
    made = plan("interaction-mini", h200, dtype="bf16", at=COUNTS)
    assert made.limit == "time" and made.sessions >= COUNTS[-1]
    steps = {level.sessions: level.step_ms for level in made.levels}
    near = {level.sessions: level.step_ms for level in plan(
        "interaction-mini", h200, dtype="bf16", at=range(1, made.sessions + 9)).levels}  # fmt: skip
    for factor, holds in ((1.03, True), (1.3, False)):
        found = capacity(
            lambda n, f=factor: f * near.get(n, 1e3), "NVIDIA H200", "interaction-mini", "bf16"
        )
        found["rows"] = [row for row in found["rows"] if row["sessions"] in steps]
        agreed = agreement.compare(made, found)
        assert agreed.holds is holds, agreed
        assert all(b == pytest.approx(factor * a) for _, a, b in agreed.steps)
        assert agreement.table(agreed).rows[0][3] == f"{1 / factor - 1:+.0%}"


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    made = plan("interaction-mini", gpu("H100"), dtype="bf16", at=COUNTS)
    good = capacity(lambda n: 10.0 * n, "NVIDIA H100 80GB HBM3", "interaction-mini", "bf16")
    for change, words in (
        (
            {"meta": good["meta"] | {"device": "NVIDIA A100"}},
            "of H100, the capacity of NVIDIA A100",
        ),
        (
            {"rows": [good["rows"][0] | {"dtype": "fp8"}]},
            "dtype bf16, the capacity was measured at fp8",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            agreement.compare(made, good | change)
    path = tmp_path / "other.json"
    for text, words in (
        ("{", "not JSON"),
        ('{"suite": "tick"}', "no capacity; `microturn-bench capacity"),
        (json.dumps(good | {"meta": good["meta"] | {"capacity": 0}}), "not one session was held"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            agreement.load(path)
    result = CliRunner().invoke(app, ["plan", "--measured", str(path)])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
