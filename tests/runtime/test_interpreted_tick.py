"""The whole tick by its kernels, every one in Triton's interpreter, against the references."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "interpreted_tick.py"


@pytest.mark.slow
def test_kernels_over_padded_buffers_make_the_tick_of_the_references() -> None:
    """Ids to the last one, audio to rounding, cursors and parity; a line that only reads, rows and
    a line of nobody.
    """
    command = [sys.executable, "-P", str(SCRIPT), "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ticks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tick["rows"] for tick in ticks] == [[0, 0, 4, 5]]
    for tick in ticks:
        assert tick["text"] and tick["codes"] and tick["state"]
        assert tick["audio"] < 1e-5
        ours, theirs = tick["experts"]
        assert ours == theirs and min(ours) > 0
        want, got = tick["ok"]
        assert got[: len(want)] == want and all(got)
