"""The compile gate: what would run on an H200 compiles for it here, within its limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from microturn.kernels.registry import OP_NAMES, OPS

COMPILED = [name for name in OP_NAMES if OPS[name].bench_cases]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_an_op_passes_the_gate(name: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "microturn.kernels.gate", name],
        capture_output=True,
        text=True,
        env=environment,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    problems = [(r["kernel"], r["case"], r["dtype"], r["problems"]) for r in rows if r["problems"]]
    assert not problems, problems
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows
