"""Kernels of these tests run on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

# Read by Triton when it decorates a kernel, so before the first import of one.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> str:
    """Of the tensors that kernels get."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Interpreted kernels take minutes in all; once in `make test` is enough."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


GATE = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture
def gate_rows(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Rows of the compile gate, printed as a table when the tests are over."""
    return request.config.stash.setdefault(GATE, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash.get(GATE, [])
    if not rows:
        return
    terminalreporter.section("kernels compiled for sm_90")
    terminalreporter.write_line(
        f"{'kernel':<28}{'dtype':<6}{'regs':>5}{'threads':>8}{'shared KB':>10}{'blocks/SM':>10}"
        f"{'occupancy':>10}  wgmma  first case"
    )
    for r in rows:
        terminalreporter.write_line(
            f"{r['kernel']:<28}{r['dtype']:<6}{r['registers']:>5}{r['threads']:>8}"
            f"{r['shared'] / 1024:>10.0f}{r['blocks_per_sm']:>10}{r['occupancy']:>10.0%}"
            f"  {'yes' if r['wgmma'] else '-':<5}  {r['case']}"
        )
