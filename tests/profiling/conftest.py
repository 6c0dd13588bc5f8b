"""One small capture for all tests of this folder, and profiles made up by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from microturn.model.interaction import InteractionFamily, load_family
from microturn.profiling.capture import Asked, capture

TICKS = 6


@pytest.fixture(scope="session")
def family() -> InteractionFamily:
    return load_family("interaction-tiny", None, tick_ms=100, seed=0, trained=False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="session")
def captured(family: InteractionFamily, folder: Path) -> dict[str, Any]:
    """A real run of interaction-tiny, 2 sessions."""
    logging.getLogger("microturn.runtime.loop").setLevel(logging.ERROR)
    return capture(family, Asked((1, 2), TICKS, 4, trace=folder / "trace.json"))
