"""Capacity, load and soak on a virtual clock, around an engine whose steps take what they are told
to: every answer is known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from microturn.bench import capacity, cli_system, load, report, schema, soak
from microturn.bench.chaos.echo import SHAPE, EchoEngine, EchoFamily
from microturn.bench.cli import app
from microturn.bench.system import System
from microturn.bench.traffic import Heard, Step, Traffic, counts
from microturn.bench.yardstick import Sample, Yardstick
from microturn.runtime import Runtime, VirtualClock
from microturn.runtime.lateness import COUNT_ONLY
from microturn.runtime.machine import device_name, slug

MS = 1_000_000
Takes = Callable[[int], int]


def straight(rows: int) -> int:
    """20 ms and 9 more a session: 8 fit into 100 ms with a margin of 5."""
    return (20 + 9 * rows) * MS


def echo(takes: Takes, **config: Any) -> System:
    """A machine of that speed; steps take the virtual clock's time."""

    def make(sessions: int, *, real: bool, admission: str) -> Runtime:
        clock = VirtualClock()
        return Runtime(
            model=EchoFamily(),  # type: ignore[arg-type]
            engine=EchoEngine(sessions, clock, takes),  # type: ignore[arg-type]
            clock=clock,
            max_sessions=sessions,
            admission=admission,
            **config,
        )

    return System("echo", SHAPE.tick_ms, SHAPE.input_rate, make, rows=1 + SHAPE.frames)


def find(system: System, **more: Any) -> dict[str, Any]:
    options = {"ticks": 30, "probe_ticks": 12, "most": 64, "miss_rate": 0.0, "margin_ms": 5.0}
    return capacity.document(system, **{**options, **more})


def test_capacity_is_the_largest_number_that_fits() -> None:
    made = find(echo(straight))
    assert made["meta"]["capacity"] == 8
    fast = {r["sessions"]: r for r in made["rows"] if r["clock"] == "fast"}
    assert sorted(fast) == [1, 3, 7, 8, 9, 11, 15], "1, 2, 4 more each time, then between"
    assert [n for n, row in fast.items() if row["holds"]] == [1, 3, 7, 8]
    for n, row in fast.items():
        assert row["busy_ms_p50"] == pytest.approx(20 + 9 * n)
        assert row["fitted_ms_p50"] == pytest.approx(20 + 9 * n, rel=0.02)
        assert row["fitted_ms_p99"] >= row["busy_ms_p99"]
    assert fast[1]["predicted_ms_p50"] is None
    assert fast[8]["predicted_ms_p50"] == pytest.approx(92, rel=0.05)
    (real,) = [r for r in made["rows"] if r["clock"] == "real"]
    assert (real["sessions"], real["misses"], real["ticks"], real["holds"]) == (8, 0, 30, True)


def test_capacity_goes_down_until_the_clock_agrees() -> None:
    """Every 300th step stalls: what too few ticks flat out do not see, the real clock does."""
    steps = 0

    def stalls(rows: int) -> int:
        nonlocal steps
        steps += 1
        return straight(rows) + (30 * MS if steps % 300 == 0 else 0)

    system = echo(stalls, lateness=COUNT_ONLY)
    made = find(system, probe_ticks=20, ticks=350)
    real = [r for r in made["rows"] if r["clock"] == "real"]
    assert [(r["sessions"], r["holds"]) for r in real] == [
        (8, False),
        (7, False),
        (6, False),
        (5, True),
    ]
    assert all(r["misses"] for r in real[:-1]) and made["meta"]["capacity"] == 5
    steps = 0
    lenient = find(system, probe_ticks=20, ticks=350, miss_rate=0.05)
    assert lenient["meta"]["capacity"] == 8


def test_a_machine_that_is_too_slow_holds_nobody_and_one_that_is_fast_all() -> None:
    assert find(echo(lambda rows: 120 * MS), probe_ticks=10)["meta"]["capacity"] == 0
    assert find(echo(lambda rows: MS), most=5, probe_ticks=10)["meta"]["capacity"] == 5


@pytest.mark.parametrize("most", [1, 2, 9, 64])
def test_bisection_asks_little_and_is_right(most: int) -> None:
    for answer in range(most + 1):
        asked: list[int] = []

        def fits(n: int, answer: int = answer, asked: list[int] = asked) -> bool:
            asked.append(n)
            return n <= answer

        assert capacity.bisect(fits, most) == answer
        assert len(asked) <= 2 * most.bit_length() and len(set(asked)) == len(asked)


def test_arrivals_are_seeded_and_rise_to_the_level_asked_for() -> None:
    def arrive(seed: int) -> list[load.Arrival]:
        return load.arrivals(start=40, end=80, stages=3, stage_s=300, stay_s=60, seed=seed)

    found = arrive(1)
    assert found == arrive(1) != arrive(2)
    assert found == sorted(found) and sum(a.at == 0 for a in found) == 40
    per_stage = [sum(a.stage == k and a.at > 0 for a in found) for k in range(3)]
    for came, level in zip(per_stage, (40, 60, 80), strict=True):
        assert came == pytest.approx(level * 300 / 60, abs=4 * (level * 5) ** 0.5)
    assert np.mean([a.stays for a in found]) == pytest.approx(60e9, rel=0.1)


def offered(system: System, **more: Any) -> dict[str, Any]:
    options = {"sessions": 8, "most": 40, "stages": 3, "stage_s": 12.0, "stay_s": 6.0}
    return load.document(system, **{**options, **more})


def test_twice_the_load_leaves_the_admitted_in_time() -> None:
    made = offered(echo(straight))
    *stages, total = made["rows"]
    assert made["meta"]["predicted_sessions"] == 6, "nobody has seen the tail yet: a quarter more"
    assert total["refused"] > 0.3 * total["offered"]
    assert total["offered"] == total["admitted"] + total["refused"]
    assert total["refused_for"] == {"time": total["refused"]}
    assert total["misses"] == total["late_session_ticks"] == total["ended"] == 0
    assert total["sessions"] <= 8 and total["ticks"] > 340
    assert 0.3 < total["served"] < 1 - 0.5 * total["refused"] / total["offered"]
    assert stages[-1]["refused"] > stages[0]["refused"]
    assert sum(row["offered"] for row in stages) == total["offered"]
    assert total["missed_pushes"] == 0 and total["drift_ms_max"] < 100
    assert total["holds"] and not any(row["late_sessions"] for row in made["rows"])


def test_without_admission_by_time_the_same_load_is_late() -> None:
    """The control: twenty slots for all who come."""
    system = echo(straight, lateness=COUNT_ONLY)
    always = System(
        system.name,
        system.tick_ms,
        system.input_rate,
        lambda sessions, *, real, admission: system.make(sessions, real=real, admission="slots"),
    )
    total = offered(always, most=20)["rows"][-1]
    assert total["refused"] < 10 and total["misses"] > 30
    assert total["late_session_ticks"] > 300 and total["worst_run"] > 5
    assert total["late_sessions"] > 10 and not total["holds"]


def test_a_soak_says_what_was_missed_and_what_grew() -> None:
    made = soak.document(echo(straight), sessions=2, minutes=1.5)
    assert [r["case"].split("minute=")[1] for r in made["rows"]] == ["1", "2", "all"]
    row = made["rows"][-1]
    assert (row["ticks"], row["misses"], row["ended"], row["drift_ms_max"]) == (900, 0, 0, 0)
    assert [r["ticks"] for r in made["rows"]] == [600, 300, 900]
    assert row["miss_rate_upper95"] == pytest.approx(1 - 0.05 ** (1 / 900))
    assert row["session_ticks"] == 2 * 900 and row["rss_mb"] > 10
    assert row["took_ms_p50"] == 38
    slow = soak.document(echo(lambda rows: 101 * MS, lateness=COUNT_ONLY), sessions=1, minutes=0.5)
    assert slow["rows"][-1]["misses"] > 200 and not slow["rows"][-1]["holds"]
    old = System("echo", 100, 1000, echo(straight).make, window_ticks=600)
    with pytest.raises(ValueError, match="windows are full after 60 s: 1 minutes leave no time"):
        soak.document(old, sessions=1, minutes=1)


@pytest.mark.parametrize(("slower", "holds"), [(1.2, True), (1.0, False)])
def test_a_host_that_grows_slow_is_told_from_sessions_that_do(
    slower: float, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps take a fifth more in the end: as the host's own work does, or not."""

    class Host(Yardstick):
        def __call__(self, now: int) -> None:
            took = 2.0 if now < began + 45e9 else 2.0 * slower
            self.samples.append(Sample(now, took))

    monkeypatch.setattr(soak, "head_and_tail", lambda steps, skip, span: (20.0, 24.0))
    system = echo(straight)
    began = VirtualClock().now()
    made = soak.document(system, sessions=1, minutes=1.5, host=Host(lambda: None))
    row = made["rows"][-1]
    assert (row["step_ratio"], row["host_ratio"], row["holds"]) == (1.2, slower, holds)
    assert row["tail_over_head"] == pytest.approx(1.2 / slower)


def test_the_yardstick_works_now_and_then_and_interruptions_do_not_count() -> None:
    waits = iter([0.02, 0, 0, 0.02, 0] * 3)
    host = Yardstick(lambda: time.sleep(next(waits)))
    for now in range(0, 3 * 10**9, 10**7):
        host(now)
    assert [sample.at for sample in host.samples] == [0, 10**9, 2 * 10**9]
    assert (host.ms(0, 10**9) or 99) < 20 and host.ms(5, 6) is None
    real = Yardstick()
    real(0)
    assert 0 < real.samples[0].ms < 1000


def test_a_run_that_has_missed_too_much_is_not_finished() -> None:
    """Two in three steps are late on a clock that runs; three minutes of it would say no more."""
    made = find(echo(lambda rows: 99 * MS), ticks=2000, margin_ms=0.0, most=1, probe_ticks=10)
    assert made["meta"]["capacity"] == 1 and made["rows"][-1]["ticks"] == 2000
    steps = 0

    def stalls(rows: int) -> int:
        nonlocal steps
        steps += 1
        return (99 if steps < 60 else 120) * MS

    late = find(
        echo(stalls, lateness=COUNT_ONLY), ticks=2000, margin_ms=0.0, most=1, probe_ticks=10
    )
    (real,) = [row for row in late["rows"] if row["clock"] == "real"]
    assert not real["holds"] and real["misses"] and real["ticks"] <= 100


def test_head_and_tail_leave_out_the_time_until_windows_are_full() -> None:
    steps = [Step(10 + k, 5.0 if k < 50 else 20.0 if k < 900 else 22.0, 0.0) for k in range(1000)]
    assert soak.head_and_tail(steps, 50, 100) == (20.0, 22.0)
    assert soak.head_and_tail(steps, 0, 50) == (5.0, 22.0)


def test_a_client_that_slept_makes_up_for_nothing_in_a_burst() -> None:
    clock = VirtualClock()
    engine = EchoEngine(1, clock)
    with Runtime(model=EchoFamily(), engine=engine, clock=clock, max_sessions=1) as runtime:  # type: ignore[arg-type]
        traffic = Traffic(runtime, Heard(np.ones(1000, np.float32) * 0.1, 100))
        client = traffic.open(until=10**12, seed=0)
        pushed = []
        push = client.session.push_audio
        client.session.push_audio = lambda pcm, rate: (pushed.append(len(pcm)), push(pcm, rate))  # type: ignore
        for _ in range(5):
            traffic.turn()
            runtime.tick()
        assert pushed == [100] * 3, "beside the one when it was opened"
        clock.advance(700 * MS)
        traffic.turn()
        assert pushed == [100] * 4 and client.missed_pushes == 6
        before = traffic.mark()
        runtime.tick()
        assert counts(before, traffic.mark())["session_ticks"] == 1


@pytest.mark.parametrize("suite", ["capacity", "load", "soak"])
def test_documents_are_valid_and_can_be_drawn(suite: str, tmp_path: Path) -> None:
    made = {
        "capacity": lambda: find(echo(straight), most=4, ticks=20, probe_ticks=10),
        "load": lambda: offered(echo(straight), stage_s=5.0),
        "soak": lambda: soak.document(echo(straight), sessions=1, minutes=0.2),
    }[suite]()
    schema.validate(json.loads(schema.dumps(made)))
    assert made["suite"] == suite and {r["op"] for r in made["rows"]} == {suite}
    path = tmp_path / "machine" / f"{suite}.json"
    schema.write(path, made)
    (drawn,) = report.draw([path], tmp_path / "charts")
    assert drawn == tmp_path / "charts" / f"machine_{suite}.png"
    assert drawn.read_bytes().startswith(b"\x89PNG") and drawn.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        (("capacity", "--ticks", "20", "--probe-ticks", "10"), "capacity: 8 sessions at 100 ms"),
        (("capacity", "--quick"), "capacity: 8 sessions at 100 ms"),
        (("load", "--stage-s", "3", "--stages", "2", "--sessions", "8"), "stage=all"),
        (("soak", "--minutes", "0.2", "--sessions", "2"), "memory grew by"),
    ],
)
def test_the_commands_end_with_their_document(
    arguments: tuple[str, ...], shows: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli_system, "_system", lambda *args: echo(straight))
    out, chart = tmp_path / "made.json", tmp_path / "made.png"
    more = ["--out", str(out), "--chart", str(chart)]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    assert shows in result.stdout and chart.exists()
    document = json.loads(result.stdout.splitlines()[-1])
    assert document == json.loads(out.read_text()) and document["suite"] == arguments[0]
    if arguments[0] == "capacity":
        assert "8 sessions: " in result.stderr and "on the real clock" in result.stderr
        wanted = 300 if "--quick" in arguments else 20
        assert document["rows"][-1]["ticks"] == wanted
    if arguments[0] == "load":
        assert "were late at some tick" in result.stdout and "refused sessions included" in (
            result.stdout
        )


def test_a_soak_that_is_too_short_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    old = System("echo", 100, 1000, echo(straight).make, window_ticks=6000)
    monkeypatch.setattr(cli_system, "_system", lambda *args: old)
    result = CliRunner().invoke(app, ["soak", "--sessions", "2", "--minutes", "1"])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "leave no time" in result.stderr


def test_sessions_follow_from_the_capacity_that_is_committed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli_system, "__file__", str(tmp_path / "cli_system.py"))
    monkeypatch.setattr(cli_system, "_system", lambda *args: echo(straight))
    result = CliRunner().invoke(app, ["soak", "--minutes", "0.2"])
    assert result.exit_code == 2 and "the capacity of echo on this machine" in result.stderr
    path = tmp_path / "results" / slug(device_name()) / "capacity.json"
    schema.write(path, find(echo(straight), most=6))
    result = CliRunner().invoke(app, ["soak", "--minutes", "0.2"])
    assert result.exit_code == 0 and "S=4,tick_ms=100,minute=all" in result.stdout, "0.8 of 6"
