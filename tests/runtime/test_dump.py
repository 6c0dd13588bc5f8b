"""Recording and replaying a session, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.runtime import DumpError, Runtime, RuntimeFull, Sampling, dumped_sessions, replay
from microturn.runtime.replayer import read_header

MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def dump(
    tmp_path: Path, make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace
) -> Path:
    """The recorded session's folder: in slot 1, beside another, through warming, a failed step,
    a pause, an image, changed sampling and missing audio.
    """
    family = make_family(sees=True)
    runtime = make_runtime(model=family, dump=tmp_path, max_sessions=2)
    other, session = runtime.open(), runtime.open("word " * 40, seed=2**60 + 1)
    with pytest.raises(RuntimeFull):
        runtime.open()
    for k in range(12):
        session.push_audio(tools.noise(1_100, k), 11_025)
        if k == 4:
            session.update(sampling=Sampling(text_temperature=0.0))
            family.raise_in = [True] * 3
        if k == 6:
            session.push_image(np.full((60, 60, 3), k, np.uint8))
            session.append_context("go on", speak=True)
        (session.pause if k == 8 else session.resume)()
        runtime.tick()
    other.close()
    session.close()
    runtime.close()
    return tmp_path / session.id


def lines(dump: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (dump / "ticks.jsonl").read_text().splitlines()]


def test_a_replay_is_exact(dump: Path, make_family: Any) -> None:
    report = replay(dump, make_family(sees=True))
    assert report.exact and report.difference is None and report.notes == ()
    assert report.ticks == 10
    assert report.end == "closed: closed by its owner"
    recorded = lines(dump)
    assert [line["tick"] for line in recorded[:-1]] == [0, 1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert [line["exec"] for line in recorded[:-1]] == [False] * 2 + [True] * 8
    assert sum("sampling" in line for line in recorded) == 2
    assert sum(line["rows"][2] for line in recorded[:-1]) == 4
    header = read_header(dump)
    assert header.seed == 2**60 + 1 and header.config["max_sessions"] == 2
    assert set(header.versions) == {"microturn", "python", "numpy", "torch"}


def test_a_dump_folder_names_its_sessions(dump: Path, make_family: Any) -> None:
    found = dumped_sessions(dump.parent)
    assert len(found) == 2 and dump in found
    assert dumped_sessions(dump) == (dump,)
    for session in found:
        assert replay(session, make_family(sees=True)).exact
    with pytest.raises(DumpError, match="2 sessions, name one of them"):
        replay(dump.parent, make_family(sees=True))
    with pytest.raises(DumpError, match="holds no dump"):
        replay(dump.parent / "nowhere", make_family(sees=True))


@pytest.mark.parametrize("stream", ["heard.f32", "said.f32", "seen.i16"])
def test_one_flipped_bit_is_found_at_its_tick(dump: Path, make_family: Any, stream: str) -> None:
    path = dump / stream
    data = bytearray(path.read_bytes())
    frame = {"heard.f32": 4 * 1_600, "said.f32": 4 * 2_400, "seen.i16": 4 * 2 * 9_600}[stream]
    data[7 if stream == "seen.i16" else frame * 3 + 3] ^= 1
    path.write_bytes(data)
    report = replay(dump, make_family(sees=True))
    assert not report.exact
    assert report.difference is not None and report.difference.startswith("tick 6: ")


def test_changed_plans_ids_and_sampling_are_found(dump: Path, make_family: Any) -> None:
    good = (dump / "ticks.jsonl").read_text()
    for field, value in (
        ("context", [3, 4, 5]),
        ("text", [1, 1]),
        ("codes", [[0, 0], [0, 0]]),
        ("ok", False),
    ):
        changed = [json.loads(line) for line in good.splitlines()]
        changed[5][field] = value
        (dump / "ticks.jsonl").write_text("".join(json.dumps(c) + "\n" for c in changed))
        report = replay(dump, make_family(sees=True))
        assert report.difference is not None and "tick 6" in report.difference, field


def test_a_recording_that_was_cut_off_replays_as_far_as_it_goes(
    dump: Path, make_family: Any
) -> None:
    path = dump / "ticks.jsonl"
    path.write_bytes(path.read_bytes()[:-150])
    report = replay(dump, make_family(sees=True))
    assert report.exact and report.end == "" and report.ticks == 9


def test_damage_is_named(dump: Path, make_family: Any) -> None:
    (dump / "said.f32").write_bytes((dump / "said.f32").read_bytes()[:-4])
    with pytest.raises(DumpError, match=r"said.f32 ends too soon"):
        replay(dump, make_family(sees=True))
    text = (dump / "ticks.jsonl").read_text().splitlines(keepends=True)
    (dump / "ticks.jsonl").write_text("".join([text[0], "{not json\n", *text[1:]]))
    with pytest.raises(DumpError, match="line 2 is damaged"):
        replay(dump, make_family(sees=True))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("version", 3, "is of version 3, this microturn reads version 2"),
        ("format", "tape", "is not of a microturn-dump"),
        ("family", "moshi", "is of 'moshi', the model is 'fake'"),
        ("weights", "0" * 64, "load the checkpoint or seed"),
        ("shape", {"tick_ms": 80}, "the dump's ticks are"),
        ("extra", 1, "does not have the fields of version 2"),
    ],
)
def test_newer_and_foreign_dumps_are_refused_in_words(
    dump: Path, make_family: Any, field: str, value: Any, says: str
) -> None:
    path = dump / "header.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(DumpError, match=says):
        replay(dump, make_family(sees=True))


def test_another_torch_is_noted(dump: Path, make_family: Any) -> None:
    path = dump / "header.json"
    header = json.loads(path.read_text())
    header["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(header))
    assert "recorded with torch 1.0" in replay(dump, make_family(sees=True)).notes[0]


def test_a_disk_that_cannot_keep_up_costs_the_recording_only(
    tmp_path: Path, make_runtime: MakeRuntime, make_family: Any, monkeypatch: Any
) -> None:
    import threading

    from microturn.runtime import dump as module

    monkeypatch.setattr(module, "MAX_WAITING", 3)
    stuck = threading.Event()
    runtime = make_runtime(dump=tmp_path)
    writer = runtime._dump
    assert writer is not None
    writer._wait = False
    writer._jobs.put(lambda: bool(stuck.wait(10)) and None)
    session = runtime.open()
    for _ in range(8):
        runtime.tick()
    assert len([session.poll() for _ in range(8)]) == 8
    stuck.set()
    runtime.close()
    report = replay(tmp_path / session.id, make_family())
    assert report.exact and 2 <= report.ticks <= 3
    assert "stopped before the session did" in report.end
