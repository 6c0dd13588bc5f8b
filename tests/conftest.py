"""One torch thread, fixed seeds, NaN in uninitialised memory, and each part's share of the time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from microturn.kernels.testing import poisoned_memory

TESTS = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison(request: pytest.FixtureRequest) -> Iterator[None]:
    """Outside oracle tests (whose libraries may rely on it) uninitialised memory is NaN."""
    if request.node.get_closest_marker("oracle"):
        yield
        return
    with poisoned_memory():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds by folder of tests/."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                part = report.nodeid.removeprefix("tests/").split("/")[0].split("::")[0]
                seconds[part] += report.duration
    total = sum(seconds.values()) or 1.0
    terminalreporter.section("share of each part")
    for part, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{part:<24} {spent:7.1f} s  {100 * spent / total:3.0f} %")
