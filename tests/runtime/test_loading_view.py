"""What a person reads while a checkpoint loads."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from microturn.model.interaction import load, save
from microturn.runtime.cli.errors import UsageError
from microturn.runtime.cli.loading import loading
from microturn.runtime.cli.run import ModelOptions
from microturn.runtime.clock import FastClock


@pytest.mark.parametrize("terminal", [True, False])
def test_bytes_and_their_speed_are_shown(terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    with loading(console, "model") as progress:
        for done in range(0, 4_000_000_001, 1_000_000_000):
            progress(done, 4_000_000_000)
    shown = text.getvalue()
    assert "loaded model: 4.00 GB in" in shown and "GB/s" in shown
    assert ("4.00 of 4.00 GB" in shown) is terminal


def test_nothing_read_is_nothing_said() -> None:
    text = io.StringIO()
    with loading(Console(file=text), "model"):
        pass
    assert text.getvalue() == ""


def test_commands_load_checkpoints_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(load("interaction-tiny"), tmp_path)
    options = ModelOptions(None, tmp_path, 100, 0)
    with options.runtime(FastClock()) as runtime:
        assert runtime.config.checkpoint == str(tmp_path)
    assert f"loaded {tmp_path.name}: 0.02 GB in" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "inkling_mm_model"}')
    with pytest.raises(UsageError, match="no audio head"):
        options.runtime(FastClock())
