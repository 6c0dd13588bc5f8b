"""`microturn-bench run`, `predict`, `compile`, `report` from the outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from microturn.bench import gpu, ops, schema
from microturn.bench.cli import app

QUICK = ("--device", "cpu", "--seconds", "0.001")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_last_line_is_the_document_and_out_holds_it(tmp_path: Path) -> None:
    out = tmp_path / "ops.json"
    result = invoke("run", "--op", "linear", "--op", "dmel", *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    *table, last = result.stdout.splitlines()
    document = json.loads(last)
    schema.validate(document)
    assert document == json.loads(out.read_text())
    assert {row["op"] for row in document["rows"]} == {"linear", "dmel"}
    assert all(row["ok"] for row in document["rows"] if row["provider"] == "microturn")
    assert set(document["meta"]["ceilings"]) == {"read_gbps", "copy_gbps", "fp32_tflops"}
    assert "order of magnitude" in document["meta"]["timing"]
    assert any("linear T=3,N=160,K=64 fp32" in line for line in table)
    charts = invoke("report", out)
    assert charts.exit_code == 0 and (tmp_path / "ops_of_floor.png").stat().st_size > 5000


def test_json_is_the_document_alone_and_filters_hold() -> None:
    asked = ("--op", "linear", "--case", "T=3", "--provider", "reference")
    result = invoke("run", *asked, *QUICK, "--json")
    (line,) = result.stdout.splitlines()
    (row,) = json.loads(line)["rows"]
    assert (row["case"], row["provider"]) == ("T=3,N=160,K=64", "reference")
    assert result.stderr == ""


def test_a_wrong_result_of_ours_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "MAX_ERROR", {"fp32": -1.0})
    result = invoke("run", "--op", "linear", "--case", "T=3", *QUICK)
    assert result.exit_code == 1 and "FAILED" in result.stdout
    assert "wrong: error ratio 0" in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["rows"][0]["us_p50"] is None


def test_what_a_time_box_cuts_off_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from microturn.bench import run
    from microturn.bench.subjects import Item
    from microturn.runtime.ceilings import Ceilings

    class Nobody:
        ceilings = Ceilings(1.0, 1.0, 1.0, "fp32")
        overhead: dict[str, float] = {}  # noqa: RUF012

        def measure(self, item: Item, providers: Any) -> Any:
            raise AssertionError("the box is over")

    (row,) = run.run(Nobody(), [Item("linear", "T=1", "bf16")], ["microturn"], box_seconds=0.0)
    assert row["us_p50"] is None and row["note"] == "the time box of 0 s was over"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "--op", "softmax"), "unknown op 'softmax'; known: linear"),
        (("run", "--op", "linear", "--case", "T=77", *QUICK), "no case T=77; dtypes: fp32; cases"),
        (("run", "--op", "linear", "--dtype", "int3", *QUICK), "no dtype int3"),
        (("run", "--provider", "abacus", *QUICK), "unknown provider 'abacus'; known: microturn"),
        (("run", "--device", "tpu"), "--device is auto, cpu or cuda"),
        (("run", "--base", "HEAD", "--provider", "microturn", *QUICK), "leave --provider out"),
        (("predict", "--op", "softmax"), "known: linear"),
        (("compile", "--op", "softmax"), "known: linear"),
        (("report", "no.json"), "No such file"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(arguments: tuple[str, ...], says: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1 and says in result.stderr


def test_an_interpreter_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    result = invoke("compile", "--op", "linear")
    assert result.exit_code == 2 and "unset TRITON_INTERPRET" in result.stderr


def test_the_gpu_command_can_be_rehearsed_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--device", "cpu", "--op", "linear", "--parts", "bench", "--out", str(tmp_path)]
    assert gpu.main(asked) == 0
    document = json.loads((tmp_path / "ops.json").read_text())
    schema.validate(document)
    assert {row["provider"] for row in document["rows"]} == {"microturn"}
    assert (tmp_path / "ops_of_floor.png").exists()
    last = capsys.readouterr().out.splitlines()[-2]
    assert last.startswith("bench  ok") and "0 wrong" in last
    assert gpu.main(["--parts", "dance", "--out", str(tmp_path)]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "compile"])
def test_real_shapes_are_compiled_and_predicted_anywhere(command: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    asked = [command, "--op", "linear", "--case", "T=16,N=6656", "--dtype", "bf16"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "microturn.bench.cli", *asked],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout.splitlines()[-1])
    schema.validate(document)
    assert document["meta"]["device"] == "predicted for NVIDIA H200"
    (row,) = document["rows"]
    assert row["launches"] == 1
    if command == "predict":
        assert row["provider"] == "predicted" and row["floor_us"] < row["us_p50"] < 30
        assert row["kb_in_flight_per_sm"] >= 40
    else:
        (kernel,) = row["kernels"]
        assert row["us_p50"] is None and kernel["wgmma"] and not kernel["problems"]
