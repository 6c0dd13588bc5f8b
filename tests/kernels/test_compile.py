"""The compile gate: what would run on an H200 compiles for it here, within its limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from microturn.kernels.registry import OP_NAMES, OPS

PLANTED = Path(__file__).parents[1] / "support" / "planted_kernels.py"
COMPILED = [name for name in OP_NAMES if OPS[name].bench_cases]


def compiled(*arguments: str) -> tuple[int, list[Any], str]:
    """Exit code, JSON lines and errors of a Python process that interprets no kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", *arguments], capture_output=True, text=True, env=environment
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_an_op_passes_the_gate(name: str, gate_rows: list[dict[str, Any]]) -> None:
    code, rows, errors = compiled("-m", "microturn.kernels.gate", name)
    gate_rows += rows
    problems = [(r["kernel"], r["case"], r["dtype"], r["problems"]) for r in rows if r["problems"]]
    assert not problems, problems
    assert code == 0, errors[-2000:]
    assert rows


@pytest.mark.slow
def test_planted_faults_are_named() -> None:
    code, found, errors = compiled(str(PLANTED))
    assert code == 0, errors[-2000:]
    sound, no_wgmma, spills, too_large, narrow, one_narrow = found
    assert sound == []
    assert any("no wgmma" in problem for problem in no_wgmma)
    assert any("spills" in problem for problem in spills)
    assert any("shared memory" in problem for problem in too_large)
    assert narrow == ["reads x_ptr, 4.19 MB, 4 bytes at a time"]
    assert one_narrow == ["reads y_ptr, 4.19 MB, 4 bytes at a time"]
