"""The `microturn-bench` command: the last line is the document; a red check leaves no number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from microturn.bench import schema, tick
from microturn.bench.cli import app
from microturn.bench.schema import COMPOSED
from microturn.kernels.registry import OP_NAMES, OPS

FAST = ("tick", "--fast", "--ticks", "6")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def last_line(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def _small_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick, "CHECK_TICKS", 2)
    monkeypatch.setattr(tick, "CHECK_SESSIONS", 2)


def test_the_last_line_is_the_document_that_out_holds(tmp_path: Path) -> None:
    out = tmp_path / "device" / "tick.json"
    result = invoke(*FAST, "--sessions", 2, "--out", out)
    document = last_line(result)
    schema.validate(document)
    assert document == json.loads(out.read_text())
    row, meta = document["rows"][0], document["meta"]
    assert row["case"] == "preset=interaction-tiny,S=2,tick_ms=100"
    assert row["ticks"] >= 6 and row["sessions"] == 2  # a loaded machine skips some
    assert row["us_p50"] == pytest.approx(1000 * row["step_ms_p50"], abs=1)
    assert 0 < row["step_ms_p50"] <= row["step_ms_p99"] <= row["step_ms_p999"] <= row["step_ms_max"]
    assert "; trained weights" in row["note"] and meta["threads"] == 1
    assert meta["device"].startswith(meta["cpu"])
    assert row["case"] in "\n".join(result.stdout.splitlines()[:-1])


@pytest.mark.realtime
def test_on_the_real_clock_ticks_take_their_time_and_a_recording_is_looped(tmp_path: Path) -> None:
    heard = tmp_path / "x.wav"
    soundfile.write(heard, np.full(8_000, 0.1, np.float32), 8_000)
    document = last_line(
        invoke("tick", "--realtime", "--ticks", 5, "--tick-ms", 200, "--input", heard)
    )
    row = document["rows"][0]
    assert row["clock"] == "real" and "recording" in row["note"]
    assert row["ticks"] >= 5 and row["case"].endswith("tick_ms=200")


def test_a_failed_check_leaves_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outputs = tick._outputs

    def differing(run: tick.TickRun, sessions: int) -> Any:
        made = outputs(run, sessions)
        if sessions > 1:
            made[-1].codes[0, 0] ^= 1
        return made

    monkeypatch.setattr(tick, "_outputs", differing)
    result = invoke(*FAST, "--out", tmp_path / "tick.json")
    assert result.exit_code == 1
    assert "nothing was timed: codes of tick 1 differ" in result.stderr
    assert "us_p50" not in result.stdout and not (tmp_path / "tick.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*FAST, "--preset", "huge"), "known: interaction-tiny"),
        ((*FAST, "--input", "no.wav"), "no such file"),
        ((*FAST, "--tick-ms", "70"), "multiple of 50"),
        (("list", "--op", "softmax"), "known: linear"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(arguments: tuple[str, ...], says: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1 and says in result.stderr


def test_list_names_every_op_with_every_case() -> None:
    document = last_line(invoke("list"))
    assert list(document["ops"]) == [*OP_NAMES, *COMPOSED] and "tick" in document["suites"]
    for name, op in OPS.items():
        assert [case["case"] for case in document["ops"][name]] == [case.id for case in op.cases]
    one = last_line(invoke("list", "--op", "linear"))
    assert list(one["ops"]) == ["linear"]
