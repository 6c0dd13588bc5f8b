"""`--background`: a callable by its import path or a URL, asked when the model delegates."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from microturn.runtime import (
    BackgroundError,
    ConfigError,
    DelegationKind,
    DelegationRequest,
    FastClock,
)
from microturn.runtime.background import Answer, HttpBackground
from microturn.runtime.cli.app import app
from microturn.runtime.cli.background import load_background
from microturn.runtime.cli.errors import UsageError
from microturn.runtime.cli.run import ModelOptions

MODULE = """
from microturn.runtime import Answer

asked = []

def answer(request):
    asked.append(request)
    return Answer("the tide is low", speak=False)

class Oracle:
    def __call__(self, request):
        return f"{request.id} is fine"

oracle = Oracle()
number = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"asked_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return name


def test_callables_are_found_by_import_path_and_urls_are_asked(module: str) -> None:
    request = DelegationRequest("d1", "s1", 0.0, ())
    assert load_background(f"{module}:answer")(request) == Answer("the tide is low")
    assert load_background(f"{module}:oracle")(request) == "d1 is fine"
    assert load_background(f"{module}:oracle.__call__")(request) == "d1 is fine"
    assert sys.path[-1] == str(Path.cwd()), "the folder comes after all libraries"
    http = load_background("http://127.0.0.1:9/delegate")
    assert isinstance(http, HttpBackground)
    with pytest.raises(BackgroundError, match="gave no answer"):
        http(request)


def test_what_cannot_be_asked_is_said_in_words(module: str) -> None:
    for where, says in (
        ("oracle", r"must be http\(s\)://HOST/PATH or PACKAGE.MODULE:NAME, got 'oracle'"),
        (":x", "got ':x'"),
        ("no.such.module:x", "no.such.module cannot be imported: ModuleNotFoundError"),
        (f"{module}_broken:x", "cannot be imported: ModuleNotFoundError: No module named 'no_such"),
        (f"{module}:nobody", f"{module} has no nobody"),
        (f"{module}:number", "is not callable; name a function"),
        (f"{module}:Oracle", "is a class, whose instances answer"),
    ):
        with pytest.raises(UsageError, match=says):
            load_background(where)
    with pytest.raises(ConfigError, match=r"must be http\(s\)://host"):
        load_background("ftp://host/x")


def test_it_is_asked_when_the_model_delegates(
    module: str, make_family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = make_family()
    inner = family.tick

    def tick(inputs: Any, outputs: Any, arenas: Any) -> None:
        inner(inputs, outputs, arenas)
        outputs.text_ids[0] = family.delegate_id

    family.tick = tick
    monkeypatch.setattr("microturn.runtime.runtime._load", lambda config: family)
    options = ModelOptions(None, None, 100, 0, 1, f"{module}:answer")
    with options.runtime(FastClock()) as runtime:
        session = runtime.open()
        events: list[Any] = []
        end = time.monotonic() + 30
        while not any(event.kind is DelegationKind.ANSWERED for event in events):
            assert time.monotonic() < end, events
            runtime.tick()
            while (output := session.poll()) is not None:
                events += output.delegations
    asked = sys.modules[module].asked
    assert asked and asked[0].session_id == session.id
    assert [line.text for line in session.conversation if line.source == "background"]


@pytest.mark.parametrize(
    ("command", "called"),
    [
        (["run", "in.wav", "--out", "out.wav"], "microturn.runtime.cli.run.run_recording"),
        (["talk"], "microturn.runtime.cli.talk.talk_to"),
    ],
)
def test_run_and_talk_take_it(
    command: list[str], called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("microturn.runtime.cli.talk.SoundDevice", object)
    monkeypatch.setattr(called, lambda options, *rest, **more: given.append(options))
    result = CliRunner().invoke(app, [*command, "--background", "tides:answer"])
    assert result.exit_code == 0, result.output
    model = given[0].model if command[0] == "run" else given[0]
    assert model.background == "tides:answer"


def test_a_turn_delegates_nothing_and_a_mistake_comes_before_the_model_is_loaded() -> None:
    turn = ["run", "--out", "out.json", "--mode", "turn", "--background", "a:b"]
    result = CliRunner().invoke(app, turn)
    assert result.exit_code == 2 and "a turn delegates nothing" in result.output
    with pytest.raises(UsageError, match="no_such cannot be imported"):
        ModelOptions("no-such-preset", None, 100, 0, 1, "no_such:x").runtime(FastClock())
