"""Counts, bounds and their two faces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from microturn.runtime import Runtime, RuntimeFull
from microturn.runtime.bounds import upper95
from microturn.runtime.metrics import Metrics, TickTiming
from microturn.runtime.nvml import GpuSensor


@pytest.mark.parametrize(
    ("events", "trials", "bound"),
    [
        (0, 1, 0.95),
        (0, 3_000, 1 - 0.05 ** (1 / 3_000)),
        (0, 10**9, 2.9957e-9),
        (1, 10, 0.394163),
        (5, 100, 0.102253),
        (50, 100, 0.586374),
        (10, 10, 1.0),
    ],
)
def test_the_upper_bound_is_clopper_and_pearsons(events: int, trials: int, bound: float) -> None:
    """Values of the beta quantile, from tables."""
    assert upper95(events, trials) == pytest.approx(bound, rel=1e-4)


def test_the_upper_bound_refuses_what_is_no_rate() -> None:
    for events, trials in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="make no rate"):
            upper95(events, trials)


def test_percentiles_are_in_ms_and_close() -> None:
    metrics = Metrics()
    for ms in range(1, 1_001):
        timing = TickTiming(0, 0, 0, ms * 1_000_000, 0, (990 - ms) * 1_000_000)
        metrics.tick(timing, sessions=3, experts=ms % 5)
    summary = metrics.summary()
    assert summary["step_ms"]["p50"] == pytest.approx(500, rel=2e-3)
    assert summary["step_ms"]["p999"] == pytest.approx(999, rel=2e-3)
    assert summary["step_ms"]["max"] == pytest.approx(1_000, rel=2e-3)
    assert (summary["misses"], summary["slack_ms_min"]) == (10, -10.0)
    assert summary["experts_touched"] == 2_000
    assert summary["experts_touched_per_tick"]["max"] == 4, "ticks of no experts are left out"
    assert (summary["session_ticks"], summary["late_session_ticks"]) == (3_000, 30)


def test_prometheus_sees_the_same_counts(make_runtime: Callable[..., Runtime]) -> None:
    first, second = make_runtime(max_sessions=1), make_runtime()
    session = first.open()
    with pytest.raises(RuntimeFull):
        first.open()
    first.tick()
    first.tick()
    text = first.metrics.prometheus().decode()
    for line in (
        "microturn_ticks_total 2.0",
        "microturn_missed_deadlines_total 0.0",
        "microturn_experts_touched_total 4.0",
        "microturn_sessions 1.0",
        'microturn_sessions_refused_total{reason="slots"} 1.0',
        'microturn_tick_seconds_count{phase="step"} 2.0',
    ):
        assert line in text.splitlines()
    session.close()
    text = first.metrics.prometheus().decode()
    assert 'microturn_sessions_closed_total{reason="closed"} 1.0' in text
    assert "microturn_sessions 0.0" in text
    assert "microturn_inserted_silence_seconds_total 0.2" in text
    assert "microturn_ticks_total 0.0" in second.metrics.prometheus().decode()


def test_a_scrape_finds_the_metrics_until_the_runtime_is_closed(
    make_runtime: Callable[..., Runtime],
) -> None:
    runtime = make_runtime()
    runtime.open()
    runtime.tick()
    runtime._engine.graph_misses = 3  # type: ignore[attr-defined]
    port = runtime.serve_metrics()
    url = f"http://127.0.0.1:{port}/metrics"
    with urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    assert "microturn_ticks_total 1.0" in text and "microturn_memory_bytes " in text
    assert "microturn_graph_misses_total 3.0" in text and runtime.summary()["graph_misses"] == 3
    assert "microturn_gpu_power_watts" not in text, "this machine's runtime has no GPU"
    with pytest.raises(RuntimeError, match="served already"):
        runtime.serve_metrics()
    with pytest.raises(OSError):
        make_runtime().serve_metrics(port)
    runtime.close()
    with pytest.raises(URLError):
        urlopen(url, timeout=10)


def test_a_run_is_one_json(make_runtime: Callable[..., Runtime], tmp_path: Path) -> None:
    runtime = make_runtime(max_sessions=1)
    runtime.open()
    with pytest.raises(RuntimeFull):
        runtime.open()
    runtime.tick()
    runtime.write_summary(tmp_path / "run.json")
    whole = json.loads((tmp_path / "run.json").read_text())
    summary = whole["summary"]
    assert (summary["ticks"], summary["sessions_refused"], summary["gpu"]) == (1, 1, None)
    assert summary["sessions_refused_for"] == {"slots": 1} and summary["rss_bytes"] > 1e7
    assert whole["config"]["max_sessions"] == 1 and "torch" in whole["versions"]


class FakeNvml:
    """A driver that answers, or does not."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    nvmlClocksEventReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwSlowdown = 8

    class NVMLError(Exception):
        pass

    def __init__(self, reasons: int = 4) -> None:
        self.reasons = reasons
        self.lost = False

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return self.reasons

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 412_500

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {1: 1_980, 2: 3_201}[kind]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=70_000_000_000)


def test_a_gpu_says_what_it_draws_and_what_holds_it_back() -> None:
    nvml = FakeNvml(reasons=4 | 8 | 1)
    metrics = Metrics(GpuSensor(nvml, "gpu 0"))
    gpu = metrics.summary()["gpu"]
    assert (gpu["power_w"], gpu["sm_mhz"], gpu["memory_mhz"]) == (412.5, 1_980, 3_201)
    assert gpu["held_back_by"] == ("SwPowerCap", "HwSlowdown")
    lines = metrics.prometheus().decode().splitlines()
    assert "microturn_gpu_power_watts 412.5" in lines
    assert "microturn_gpu_memory_used_bytes 7e+10" in [line.replace("+0", "+") for line in lines]
    assert 'microturn_gpu_held_back{reason="HwSlowdown"} 1.0' in lines
    assert 'microturn_gpu_held_back{reason="SwThermalSlowdown"} 0.0' in lines
    nvml.lost = True
    assert metrics.summary()["gpu"] is None
    assert b"microturn_gpu_power" not in metrics.prometheus()


def test_ticks_that_passed_without_a_session_are_counted_and_caught_up(
    make_runtime: Callable[..., Runtime],
) -> None:
    runtime = make_runtime()
    session = runtime.open()
    runtime.tick()
    runtime._scheduler.owe(3)
    assert session.stats.missed_ticks == 3
    session.push_audio(np.zeros(4_800, np.float32), 16_000)
    runtime._scheduler.catch_up(runtime._scheduler.gather().shares)
    assert session.stats.missed_ticks == 2
    session.close()
    assert runtime.summary()["missed_session_ticks"] == 2
