"""The configuration object, and what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import microturn.runtime
from microturn.model import interaction
from microturn.model.interaction import InteractionFamily, InteractionModel, preset
from microturn.runtime import ConfigError, Runtime, RuntimeConfig, RuntimeFull, VirtualClock


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tick_ms": 0}, "tick_ms must be at least 1, got 0"),
        ({"max_sessions": "4"}, "max_sessions must be int, got '4'"),
        ({"threads": True}, "threads must be int"),
        ({"device": "tpu"}, "device must be one of"),
        ({"input_overflow": "block"}, "input_overflow must be one of"),
        ({"input_queue_ms": 50}, "must hold a tick of 100 ms, got 50"),
        ({"seed": -1}, "seed must be in"),
        ({"dump": 5}, "dump must be"),
        ({"preset": None}, "preset must be str"),
        ({"byte_budget": 1.5}, "byte_budget must be int | None"),
        ({"byte_budget": 0}, "byte_budget must be at least 1, got 0"),
        ({"window": -1}, "window must be at least 1, got -1"),
        ({"num_sink_tokens": -1}, "num_sink_tokens must be 0 or more, got -1"),
        ({"admission": "maybe"}, "admission must be one of"),
        ({"admission_margin_ms": 100}, "less than a tick of 100 ms, got 100"),
    ],
)
def test_a_bad_value_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RuntimeConfig(**values)


def test_a_file_gives_the_same_as_keywords(tmp_path: Path) -> None:
    path = tmp_path / "runtime.toml"
    path.write_text('preset = "interaction-mini"\nmax_sessions = 8\nseed = 3\n')
    want = RuntimeConfig(preset="interaction-mini", max_sessions=9, seed=3, dump="/d")
    assert RuntimeConfig.from_file(path, max_sessions=9, dump=Path("/d")) == want
    path.write_text("max_session = 8\n")
    with pytest.raises(ConfigError, match="unknown max_session; known: preset, checkpoint"):
        RuntimeConfig.from_file(path)
    path.write_text("max_sessions = \n")
    with pytest.raises(ConfigError, match="is not TOML"):
        RuntimeConfig.from_file(path)


def test_a_runtime_takes_a_configuration_and_overrides(make_family: Any) -> None:
    config = RuntimeConfig(max_sessions=2)
    with Runtime(config, model=make_family(), clock=VirtualClock(), seed=4) as runtime:
        assert (runtime.config.max_sessions, runtime.config.seed) == (2, 4)
    with pytest.raises(ConfigError, match="unknown max_session; known"):
        Runtime(model=make_family(), max_session=2)


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=cwd
    )


def test_the_door_and_what_plans_ticks_import_no_torch(tmp_path: Path) -> None:
    names = "clock plan scheduler loop emit session config dump metrics engine"
    imports = "; ".join(f"import microturn.runtime.{name}" for name in names.split())
    code = f"import sys, microturn.runtime; {imports}; print('torch' in sys.modules)"
    done = python(code, tmp_path)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_every_public_name_exists_and_no_other() -> None:
    for name in microturn.runtime.__all__:
        assert getattr(microturn.runtime, name) is not None
    assert callable(microturn.runtime.replay)
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        _ = microturn.runtime.Sesion  # type: ignore[attr-defined]


def test_a_byte_budget_says_how_many_slots_there_are(make_family: Any) -> None:
    family = make_family()
    slot = sum(spec.bytes_per_slot for spec in family.arena_specs())
    budget = {"model": family, "clock": VirtualClock(), "max_sessions": 9}
    with Runtime(byte_budget=3 * slot + 1, **budget) as runtime:
        assert (runtime.num_slots, runtime.state_bytes) == (3, 3 * slot)
        for _ in range(3):
            runtime.open()
        with pytest.raises(RuntimeFull, match="all 3 sessions are taken") as refused:
            runtime.open()
        assert refused.value.reason == "slots"
    with Runtime(byte_budget=100 * slot, **budget) as runtime:
        assert runtime.num_slots == 9
    with pytest.raises(ConfigError, match=r"one session takes 0\.0 MB, got 0\.0 MB"):
        Runtime(byte_budget=slot - 1, **budget)
    with pytest.raises(ConfigError, match="lower max_sessions, or give a byte_budget"):
        Runtime(model=family, clock=VirtualClock(), max_sessions=1 << 50)


def test_a_window_changes_what_a_slot_takes_and_the_loader_is_told(
    monkeypatch: pytest.MonkeyPatch, make_family: Any
) -> None:
    def slot_bytes(*seen: int | None) -> int:
        with torch.device("meta"):
            model = InteractionModel(preset("interaction-tiny").with_window(*seen))
        return sum(spec.bytes_per_slot for spec in InteractionFamily(model).arena_specs())

    key_and_value = 2 * 2 * 64 * 4
    assert slot_bytes(None, None) - slot_bytes(1024, 128) == 2 * (1024 - 128) * key_and_value
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        interaction, "load_family", lambda *args, **kwargs: told.update(kwargs) or make_family()
    )
    Runtime(clock=VirtualClock(), window=1024, num_sink_tokens=128).close()
    assert (told["window"], told["num_sink_tokens"]) == (1024, 128)
