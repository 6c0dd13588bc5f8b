"""A process of its own for every measurement: it may die, hang or come from another revision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from microturn.bench import base
from microturn.bench.cli import app
from microturn.bench.isolated import Worker, WorkerFailed
from microturn.bench.subjects import Item
from microturn.runtime.ceilings import Ceilings

ROOT = Path(__file__).parents[2]
CEILINGS = Ceilings(read_gbps=10.0, copy_gbps=10.0, tflops=0.1, dtype="fp32")
ITEM = Item("linear", "T=3,N=160,K=64", "fp32")

FAKES = """
import os, time
from microturn.kernels.registry import get

class Fake:
    def __init__(self, name, act):
        self.name, self.act = name, act
    def supports(self, op, case, dtype):
        return True
    def prepare(self, op, case, dtype, inputs, device):
        self.act()
        return lambda: get(op).reference(*inputs)

PROVIDERS = (
    Fake("dies", lambda: (print("Aborted: illegal address", flush=True), os._exit(9))),
    Fake("hangs", lambda: time.sleep(60)),
    Fake("fine", lambda: None),
)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The package with peers that misbehave."""
    folder = tmp_path / "microturn"
    (folder / "bench" / "peers").mkdir(parents=True)
    for name in ("kernels", "model", "runtime"):
        (folder / name).symlink_to(ROOT / name)
    for path in (ROOT / "bench").iterdir():
        if path.name not in ("peers", "__pycache__"):
            (folder / "bench" / path.name).symlink_to(path)
    peers = folder / "bench" / "peers"
    (peers / "__init__.py").write_text('MODULES = ("microturn.bench.peers.fakes",)\n')
    (peers / "fakes.py").write_text(FAKES)
    return tmp_path


def test_a_provider_that_dies_or_hangs_costs_its_own_row_alone(tree: Path) -> None:
    worker = Worker("cpu", root=tree, ceilings=CEILINGS, seconds=0.001, item_seconds=6.0)
    with worker:
        found = {row["provider"]: row for row in worker.measure(ITEM, ["dies", "hangs", "fine"])}
        (unknown,) = worker.measure(ITEM._replace(case="T=5"), ["fine"])
    assert list(found) == ["dies", "hangs", "fine"]
    assert found["dies"]["us_p50"] is None and found["dies"]["ok"] is False
    assert "exit code 9; Aborted: illegal address" in found["dies"]["note"]
    assert "no answer in 6 s" in found["hangs"]["note"]
    assert found["fine"]["us_p50"] > 0 and found["fine"]["floor_us"] > 0
    assert unknown["note"] == "linear has no case 'T=5'"


def test_a_worker_that_does_not_come_up_says_why() -> None:
    with pytest.raises(WorkerFailed, match=r"no device type|Expected one of"):
        Worker("abacus", ceilings=CEILINGS)


@pytest.mark.slow
def test_another_revision_is_timed_in_turn_with_this_tree(tmp_path: Path) -> None:
    if not (base.__file__.startswith(str(ROOT)) and (ROOT / ".git").exists()):
        pytest.skip("wants this checkout")
    out = tmp_path / "ops.json"
    asked = ["run", "--op", "linear", "--case", "T=3", "--device", "cpu", "--seconds", "0.001"]
    result = CliRunner().invoke(app, [*asked, "--base", "HEAD", "--out", str(out)])
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    now, then = document["rows"]
    assert (now["provider"], then["provider"]) == ("microturn", "base")
    assert then["us_p50"] is not None, then["note"]
    assert now["base_us"] == then["us_p50"]
    assert now["speedup"] == pytest.approx(then["us_p50"] / now["us_p50"], abs=1e-3)
    assert document["meta"]["base"] == "HEAD" and "x base" in result.stdout
    assert str(tmp_path) not in base._git(ROOT, "worktree", "list")  # type: ignore[operator]


def test_a_revision_that_is_none_is_refused() -> None:
    asked = ["run", "--op", "linear", "--device", "cpu", "--base", "no-such-revision"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2 and "--base" in result.stderr
