"""A session saved, moved and restored: every bit goes on, and nothing accepted is lost."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import killed_while_saving
import numpy as np
import pytest

from microturn.runtime import CloseCode, RealClock, Runtime, Sampling, SnapshotError, Video
from microturn.runtime.errors import QueueFull, RuntimeFull
from microturn.runtime.gpu_engine import GpuEngine
from microturn.runtime.graphs import InlineMachine
from microturn.runtime.inbox import Inbox
from microturn.runtime.scheduler import Seat
from microturn.runtime.session import Session
from microturn.runtime.session_state import SeatState, SpokenState
from microturn.runtime.snapshot import Snapshot, read_snapshot, write_snapshot

MakeRuntime = Callable[..., Runtime]
RATE = 44_100


def feed(session: Session, tools: SimpleNamespace, tick: int) -> None:
    """Half a tick more or less of audio at a rate of its own, a video frame, and context."""
    session.push_audio(tools.noise(RATE // 10 + (2_205 if tick % 2 else -2_205), tick), RATE)
    picture = np.random.default_rng(tick).integers(0, 256, (60, 60, 3), np.uint8)
    session.push_image(picture)
    if tick % 3 == 0:
        session.append_context("some words for it " * 4)


def grow(runtime: Runtime, tools: SimpleNamespace, ticks: int) -> Session:
    session = runtime.open("be brief", seed=5, sampling=Sampling(text_temperature=0.5))
    for tick in range(ticks):
        feed(session, tools, tick)
        runtime.tick()
    feed(session, tools, ticks)
    return session


def go_on(
    runtime: Runtime, session: Session, tools: SimpleNamespace, ticks: range
) -> list[tuple[bytes, bytes, str]]:
    for tick in ticks:
        runtime.tick()
        feed(session, tools, tick)
    return tools.bits(tools.drain(session))  # type: ignore[no-any-return]


@pytest.fixture
def family(make_family: Any) -> Any:
    return make_family(sees=True, max_rows=24)


@pytest.mark.parametrize(("ticks", "max_rows"), [(0, 24), (1, 24), (1, 16), (13, 24)])
def test_a_session_goes_on_elsewhere_bit_for_bit(
    make_runtime: MakeRuntime,
    make_family: Any,
    tools: SimpleNamespace,
    tmp_path: Path,
    ticks: int,
    max_rows: int,
) -> None:
    """With a resampler under way, audio, patches and context that wait, and outputs not read; next
    to others, in another slot. With 16 rows it is still warming.
    """
    here, there = (make_runtime(model=make_family(sees=True, max_rows=max_rows)) for _ in range(2))
    session = grow(here, tools, ticks)
    live = session.state == "live"
    assert live == (ticks > 0 and max_rows == 24)
    session.update(sampling=Sampling(text_temperature=0.9))
    before = session.stats
    info = here.snapshot(session.id, tmp_path / "s")
    assert info.bytes == (tmp_path / "s").stat().st_size > 10_000
    assert info.position_ms == 100 * ticks * live and info.seconds > 0 < info.copy_ms
    other = there.open()
    there.tick()
    moved = there.restore(tmp_path / "s")
    assert moved.id == session.id and moved.seed == 5 and moved.stats == before
    assert moved.conversation == session.conversation
    want = go_on(here, session, tools, range(ticks + 1, ticks + 8))
    assert len(want) >= ticks * live + 5, "what was not read comes first"
    assert go_on(there, moved, tools, range(ticks + 1, ticks + 8)) == want
    assert moved.stats == session.stats and other.state == "live"


def test_video_said_to_come_counts_where_the_session_goes_on(
    make_runtime: MakeRuntime, family: Any, tmp_path: Path
) -> None:
    here, there = make_runtime(model=family), make_runtime(model=family)
    session = here.open(video=Video(width=160, height=120, fps=4))
    here.tick()
    here.snapshot(session.id, tmp_path / "s")
    there.restore(tmp_path / "s")
    assert here._scheduler.images() == there._scheduler.images() == [6]


def test_taking_a_snapshot_changes_nothing(
    make_runtime: MakeRuntime, family: Any, tools: SimpleNamespace, tmp_path: Path
) -> None:
    plain, saved = make_runtime(model=family), make_runtime(model=family)
    want = go_on(plain, grow(plain, tools, 4), tools, range(5, 9))
    session = grow(saved, tools, 4)
    session.snapshot(tmp_path / "s")
    assert go_on(saved, session, tools, range(5, 9)) == want


def test_everything_that_waits_counts(
    make_runtime: MakeRuntime, family: Any, tools: SimpleNamespace, tmp_path: Path
) -> None:
    """The control: another value of any of it, and what comes differs."""
    runtime = make_runtime(model=family, max_sessions=2)
    session = grow(runtime, tools, 3)
    runtime.snapshot(session.id, tmp_path / "s")
    whole = read_snapshot(tmp_path / "s")
    session.close()

    def goes_on(arrays: Any) -> Any:
        write_snapshot(tmp_path / "o", Snapshot(whole.facts, arrays))
        moved = runtime.restore(tmp_path / "o")
        for tick in (4, 5, 6):
            runtime.tick()
            feed(moved, tools, tick)
        moved.close()
        return tools.bits(tools.drain(moved))

    want = goes_on(whole.arrays)
    for name in ("audio", "context_ids", "recent", "frames/0", "last_frame"):
        other = whole.arrays[name].copy()
        other[-1:] += 3 if name == "context_ids" else 1
        assert goes_on({**whole.arrays, name: other}) != want, name
    assert goes_on(whole.arrays) == want


def test_every_fact_of_a_session_is_saved_or_known_not_to_be(
    make_runtime: MakeRuntime, family: Any
) -> None:
    """A new attribute must be put into a snapshot, or here with the reason."""
    session = make_runtime(model=family).open()
    seat = {field.name for field in dataclasses.fields(Seat)}
    apart = {"session_id", "slot", "seed", "inbox", "outbox"}
    begun_again = {"strikes", "joined"}
    assert seat == {f.name for f in dataclasses.fields(SeatState)} | apart | begun_again
    inbox = {name for name in vars(session._inbox) if name not in ("session_id", "lock", "closed")}
    policy = {"_drop_oldest", "_excused", "_warmed"}  # the last is of the tick before
    saved = {"audio", "context", "patches", "sampling", "counters", "live", "paused", "draining"}
    assert inbox == saved | {"_unmarked", "owed"} | policy
    mine = {"_inbox", "_outbox", "_resampler", "_last_frame", "_conversation", "seed"}
    runtimes = {"_rate", "_tokenizer", "_speak_ids", "_end", "_cancel", "_snapshot", "_pushing"}
    assert set(vars(session)) == mine | runtimes
    assert len(dataclasses.fields(SpokenState)) == len(mine)
    assert isinstance(session._inbox, Inbox)


def test_a_paused_and_a_closing_session_stay_so(
    make_runtime: MakeRuntime, family: Any, tools: SimpleNamespace, tmp_path: Path
) -> None:
    here, there = make_runtime(model=family), make_runtime(model=family)
    paused, closing = here.open(seed=1), here.open(seed=2)
    for session in (paused, closing):
        session.push_audio(tools.noise(1_600), 16_000)
    here.tick()
    paused.pause()
    closing.push_audio(tools.noise(2_400), 16_000)
    closing.close(drain=True)
    for session in (paused, closing):
        session.snapshot(tmp_path / session.id)
    one, two = (there.restore(tmp_path / s.id) for s in (paused, closing))
    for _ in range(4):
        there.tick()
    assert one.state == "paused" and len(tools.drain(one)) == 1
    assert two.state == "closed" and len(tools.drain(two)) == 3
    assert two.closed_reason is not None and two.closed_reason.code is CloseCode.CLOSED


def changed(path: Path, at: int, byte: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[at] = byte
    return bytes(data)


def test_a_file_that_is_not_one_is_refused_in_words(
    make_runtime: MakeRuntime, family: Any, tools: SimpleNamespace, tmp_path: Path
) -> None:
    runtime = make_runtime(model=family)
    session = grow(runtime, tools, 2)
    good = tmp_path / "good"
    runtime.snapshot(session.id, good)
    session.close()
    whole = good.read_bytes()
    for data, says in [
        (b"RIFF" + whole[4:], "not a snapshot of microturn's: it begins b'RIFF"),
        (b"", "not a snapshot"),
        (whole[:20], "cut off: it ends after 20 bytes"),
        (whole[:-1], "cut off or damaged"),
        (whole + b"x", "cut off or damaged"),
        (changed(good, 8, 9), "version 9, this microturn reads version 1; restore it with the one"),
        (changed(good, 25, 0), "cut off or damaged"),
        (changed(good, len(whole) // 2, whole[len(whole) // 2] ^ 1), "cut off or damaged"),
    ]:
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(SnapshotError, match=says):
            runtime.restore(tmp_path / "bad")
    with pytest.raises(SnapshotError, match="cannot be read: No such file"):
        runtime.restore(tmp_path / "none")
    whole_facts = read_snapshot(good)
    write_snapshot(tmp_path / "bad", Snapshot({"model": whole_facts.facts["model"]}, {}))
    with pytest.raises(SnapshotError, match="lacks something"):
        runtime.restore(tmp_path / "bad")
    assert not runtime.sessions and runtime.restore(good).id == session.id


def test_another_model_slot_or_queue_is_refused_in_words(
    make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace, tmp_path: Path
) -> None:
    here = make_runtime(model=make_family(sees=True, max_rows=24))
    session = grow(here, tools, 2)
    here.snapshot(session.id, tmp_path / "s")
    with pytest.raises(SnapshotError, match=f"session {session.id} is open here; close it first"):
        here.restore(tmp_path / "s")
    other = make_family(sees=True, max_rows=24)
    other.digest = lambda: "e" * 64
    with pytest.raises(SnapshotError, match=r"of a model with weights ffff.*this one has eeee"):
        make_runtime(model=other).restore(tmp_path / "s")
    other.digest, other.name = make_family().digest, "other"
    with pytest.raises(SnapshotError, match="family fake, this one has other"):
        make_runtime(model=other).restore(tmp_path / "s")
    wide = make_family(sees=True, max_rows=24)
    specs = wide.arena_specs()
    wide.arena_specs = lambda: (dataclasses.replace(specs[0], capacity=64), *specs[1:])
    there = make_runtime(model=wide)
    with pytest.raises(SnapshotError, match=r"does not fit.*saved from an arena.*here is"):
        there.restore(tmp_path / "s")
    assert not there.sessions and there.free_slots == 4
    for config, says in [
        ({"input_queue_ms": 200}, "samples waited where it was saved.*raise input_queue_ms"),
        ({"output_queue_ticks": 1}, "2 outputs were not read.*raise output_queue_ticks"),
        ({"context_queue_rows": 3}, "context tokens waited.*raise context_queue_rows"),
    ]:
        session.push_audio(tools.noise(8_000), 16_000)
        session.append_context("four more words now")
        here.snapshot(session.id, tmp_path / "s")
        with pytest.raises(QueueFull, match=says):
            make_runtime(model=make_family(sees=True, max_rows=24), **config).restore(
                tmp_path / "s"
            )
    full = make_runtime(model=make_family(sees=True, max_rows=24), max_sessions=1)
    full.open()
    with pytest.raises(RuntimeFull):
        full.restore(tmp_path / "s")
    assert len(full.sessions) == 1
    with pytest.raises(SnapshotError, match="no open session 'none'"):
        here.snapshot("none", tmp_path / "n")
    with pytest.raises(SnapshotError, match="cannot be written"):
        here.snapshot(session.id, tmp_path / "no" / "folder")


@pytest.mark.parametrize("loop", ["plain", "overlapped"])
def test_an_engine_of_graphs_saves_what_a_cpu_restores(
    make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace, tmp_path: Path, loop: str
) -> None:
    """And the other way; a tick that is under way meanwhile is handed out first."""
    family = make_family(sees=True, max_rows=24)
    graphs = make_runtime(model=family, engine=GpuEngine(family, 2, InlineMachine()), loop=loop)
    here, there = make_runtime(model=family), make_runtime(model=family)
    moved = grow(graphs, tools, 3)
    graphs.snapshot(moved.id, tmp_path / "s")
    first = tools.bits(tools.drain(there.restore(tmp_path / "s")))
    there.sessions[0].close()
    assert len(first) == 3
    on_cpu = here.restore(tmp_path / "s")
    got = go_on(here, on_cpu, tools, range(4, 7))
    here.snapshot(on_cpu.id, tmp_path / "s")
    moved.close()
    got += go_on(graphs, graphs.restore(tmp_path / "s"), tools, range(7, 10))
    straight = grow(there, tools, 3)
    want = go_on(there, straight, tools, range(4, 10))
    graphs.close()
    assert got == want[: len(got)] and len(got) >= len(want) - 1


def test_an_engine_that_cannot_says_so(
    make_runtime: MakeRuntime, family: Any, tmp_path: Path
) -> None:
    runtime = make_runtime(model=family)
    engine = runtime._engine
    names = ("num_slots", "state_bytes", "step", "warm_up", "close")
    runtime._mover._engine = SimpleNamespace(**{name: getattr(engine, name) for name in names})
    session = runtime.open()
    with pytest.raises(SnapshotError, match="cannot save sessions"):
        runtime.snapshot(session.id, tmp_path / "s")


def test_a_disk_that_is_full_costs_the_snapshot_and_nothing_else(
    make_runtime: MakeRuntime,
    family: Any,
    tools: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = make_runtime(model=family, snapshots=tmp_path, snapshot_every_s=1)
    session = runtime.open(seed=1)
    runtime.tick()
    file = tmp_path / f"{session.id}.snapshot"
    session.snapshot(file)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(SnapshotError, match=r"cannot be written.*No space left"):
            session.snapshot(file)
        for _ in range(20):
            runtime.tick()
        runtime.close()
    assert "a periodic snapshot failed" in caplog.text
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    assert len(tools.drain(session)) == 21


def wait_for(folder: Path, count: int) -> list[Path]:
    """The disk has its own time: at most ten seconds of it."""
    for _ in range(1_000):
        if len(files := list(folder.glob("*.snapshot"))) == count:
            return files
        time.sleep(0.01)
    raise AssertionError(f"{folder} holds {files}")


def test_sessions_are_saved_by_themselves_and_forgotten_when_closed(
    make_runtime: MakeRuntime, family: Any, tools: SimpleNamespace, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    runtime = make_runtime(model=family, snapshots=folder, snapshot_every_s=1)
    sessions = [runtime.open(seed=k) for k in range(3)]
    for tick in range(40):
        for session in sessions:
            session.push_audio(tools.noise(1_600, tick), 16_000)
        runtime.tick()
        for session in sessions:
            tools.drain(session)
        if tick == 15:
            files = wait_for(folder, 3)
            ages = [read_snapshot(path).facts["seat"]["position"] for path in files]
            assert all(9 <= age <= 16 for age in ages)
    sessions[0].close()
    runtime.close()
    kept = {path.name: read_snapshot(path).facts for path in folder.iterdir()}
    assert set(kept) == {f"{session.id}.snapshot" for session in sessions[1:]}
    assert [facts["seat"]["position"] for facts in kept.values()] == [40, 40], "the last of all"


def test_a_session_closed_while_it_is_written_leaves_no_file(
    make_runtime: MakeRuntime, family: Any, tmp_path: Path
) -> None:
    """The file is removed before it could be written: it is not written then."""
    runtime = make_runtime(model=family, snapshots=tmp_path, snapshot_every_s=1)
    session, copy = runtime.open(), runtime._mover.copy

    def closing(session_id: str) -> Any:
        copied = copy(session_id)
        session.close()
        return copied

    runtime._keeper._copy = closing
    for _ in range(15):
        runtime.tick()
    assert session.state == "closed"
    runtime.close()
    assert not list(tmp_path.iterdir())


def test_a_push_under_way_is_waited_for_after_the_next_tick(
    make_runtime: MakeRuntime, family: Any, tmp_path: Path
) -> None:
    """Ticks never wait for a caller: the copy is tried again."""
    runtime = make_runtime(model=family, snapshots=tmp_path, snapshot_every_s=1)
    session = runtime.open()
    with session._pushing:
        for _ in range(20):
            runtime.tick()
            session.poll()
    assert not list(tmp_path.iterdir())
    runtime.tick()
    runtime._keeper.close()
    assert [p.name for p in tmp_path.iterdir()] == [f"{session.id}.snapshot"]


def test_on_a_clock_thread_and_from_many_others(
    make_runtime: MakeRuntime, family: Any, tools: SimpleNamespace, tmp_path: Path
) -> None:
    runtime = make_runtime(model=family, clock=RealClock(), output_overflow="drop_oldest")
    sessions = [runtime.open(seed=k) for k in range(2)]
    infos = []

    def save(session: Session) -> None:
        for k in range(2):
            session.push_audio(tools.noise(1_600, k), 16_000)
            infos.append(session.snapshot(tmp_path / f"{session.id}-{k}"))

    threads = [threading.Thread(target=save, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(infos) == 4 and all(read_snapshot(info.path).arrays for info in infos)
    sessions[0].close()
    moved = runtime.restore(tmp_path / f"{sessions[0].id}-1")
    assert moved.read(timeout=5) is not None
    runtime.close()


def test_after_kill_9_another_process_goes_on_from_what_was_last_saved(
    tools: SimpleNamespace, tmp_path: Path
) -> None:
    """The real model. Killed in the middle of a second save, the first one is whole; it goes on
    here bit for bit as a session that was never interrupted, outputs that were not read first.
    """
    file, ticks = tmp_path / "session", killed_while_saving.TICKS
    child = subprocess.Popen(
        [sys.executable, "-P", killed_while_saving.__file__, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == killed_while_saving.IN_THE_MIDDLE
        child.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"session", "session.part"}
    here = killed_while_saving.make(max_sessions=2)
    straight, moved = killed_while_saving.begin(here), None
    for tick in range(ticks + 4):
        if tick == ticks:
            moved = here.restore(file)
        for session in (straight, moved) if moved else (straight,):
            killed_while_saving.hear(session, tick)
        here.tick()
    assert moved is not None
    want = tools.bits(tools.drain(straight))
    assert tools.bits(tools.drain(moved)) == want and len(want) == ticks + 3
    moved.snapshot(file)
    assert read_snapshot(file).facts["seat"]["position"] == ticks + 3
    here.close()
