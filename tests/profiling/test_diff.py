"""What changed between two profiles: planted regressions are named first, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from microturn.model.interaction import InteractionFamily
from microturn.profiling import document
from microturn.profiling.cli import app
from microturn.profiling.crowd import Crowd
from microturn.profiling.diff import Difference, diff, sentences, to_json
from microturn.profiling.recorder import Recorder
from microturn.profiling.statistics import holm, mann_whitney
from microturn.runtime import FastClock, Runtime
from microturn.runtime.ceilings import Ceilings

OPS = {
    "streaming_attention": 30.0,
    "between ops": 17.0,
    "depth_head": 17.0,
    "grouped_experts": 13.0,
    "codec_transformer": 11.0,
    "conv_residual_norm": 9.0,
    "linear": 9.0,
    "qkvr_prologue": 8.0,
    "router": 4.0,
    "conv_transpose": 4.0,
    "residual_unit": 3.0,
}
"""Of a tick of interaction-tiny, about, in ms."""
PLANTED = 1.2


def profile(seed: int, *, pace: float = 1.0, noise: float = 0.1, **slower: float) -> dict[str, Any]:
    """60 ticks of a machine whose pace wanders, beside skewed noise of every op."""
    draw = np.random.default_rng(seed)
    pace = pace * np.exp(0.3 * np.sin(np.arange(60) / 9 + draw.uniform(0, 6)))
    lines, model = [], np.zeros(60)
    for op, ms in OPS.items():
        took = ms * slower.get(op, 1.0) * pace * (1 + draw.gamma(1.0, noise, 60))
        model += took
        halves = (("append", 0.6), ("decode.1", 0.4))
        lines += [{"part": part, "op": op, "ms": list(took * share)} for part, share in halves]
    return {
        "schema": document.SCHEMA,
        "kind": document.KIND,
        "case": "preset=made-up",
        "device": "one",
        "threads": 1,
        "load_1min": 1.0,
        "ticks": {"wall": list(model)},
        "lines": lines,
    }


@pytest.mark.parametrize("op", OPS)
def test_a_planted_regression_is_named_first_and_alone(op: str) -> None:
    found = diff(profile(1), profile(2, **{op: PLANTED}))
    assert [change.op for change in found.sure] == [op]
    change = found.sure[0]
    assert change.interval[0] < PLANTED < change.interval[1] * 1.02
    assert f"{op} became slower" in sentences(found)[1]
    assert [c.op for c in diff(profile(1), profile(2, **{op: 1 / PLANTED})).sure] == [op]


def test_nothing_is_named_where_nothing_changed() -> None:
    named = sum(len(diff(profile(2 * k), profile(2 * k + 1)).sure) for k in range(40))
    assert named <= 2  # of 440, at p < 0.01 after adjustment


def test_a_slower_machine_is_drift_and_no_regression() -> None:
    found = diff(profile(1), profile(2, pace=1.5))
    assert not found.sure and found.drift == pytest.approx(1.5, rel=0.15)
    both = diff(profile(1), profile(2, pace=1.5, router=1.5))
    assert [change.op for change in both.sure] == ["router"]


def test_an_op_that_came_or_went_is_a_change() -> None:
    before, after = profile(1), profile(2)
    after["lines"] = [line for line in after["lines"] if line["op"] != "router"]
    found = diff(before, after)
    assert [c.op for c in found.sure] == ["router"] and found.sure[0].after_ms == 0
    back = diff(after, before)
    assert json.loads(to_json(back))["changes"][0]["ratio"] is None


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    other = profile(2) | {"device": "two", "load_1min": 9.0}
    said = " ".join(sentences(diff(profile(1), other)))
    assert "the device differs: one and two" in said and "not equally loaded: 1 and 9" in said
    short = profile(1)
    short["ticks"]["wall"] = short["ticks"]["wall"][:3]
    with pytest.raises(ValueError, match="3 ticks is too short"):
        diff(short, profile(2))


def test_the_command_compares_folders(tmp_path: Path) -> None:
    for name, made in (("a", profile(1)), ("b", profile(2, linear=PLANTED))):
        (tmp_path / name).mkdir()
        document.save(made, tmp_path / name)
    given = [str(tmp_path / name) for name in ("a", "b")]
    result = CliRunner().invoke(app, ["diff", *given, "--out", str(tmp_path / "diff.json")])
    assert result.exit_code == 0 and "linear became slower" in result.output
    assert json.loads((tmp_path / "diff.json").read_text())["changes"][0]["op"] == "linear"
    result = CliRunner().invoke(app, ["diff", given[0], str(tmp_path / "none")])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_the_rank_sum_test_is_the_known_one() -> None:
    """Values of scipy.stats.mannwhitneyu(method="asymptotic")."""
    a = np.array([1.1, 2.3, 2.9, 3.0, 4.7, 5.5, 6.1, 7.0])
    assert mann_whitney(a, a + 2.5) == pytest.approx(0.0458395, rel=1e-4)
    assert mann_whitney(a, a) == pytest.approx(1.0)
    assert mann_whitney(np.ones(9), np.ones(9)) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def planted(op: str, factor: float) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """The op's module, its `pick`, and one of an op that takes `factor` times as long."""
    module = import_module(f"microturn.kernels.{op}.op")
    plain = module.pick

    def pick(*args: Any, **kwargs: Any) -> Any:
        run = plain(*args, **kwargs)

        def slow(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter_ns()
            made = run(*args, **kwargs)
            until = began + factor * (perf_counter_ns() - began)
            while perf_counter_ns() < until:
                pass
            return made

        return slow

    return module, plain, pick


def test_a_planted_regression_of_a_real_run_is_named_first(
    family: InteractionFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ticks with and without it in turn, as many as it takes to be sure of it, 80 at most."""
    op = "streaming_attention"
    module, plain, slow = planted(op, PLANTED)
    ceilings = Ceilings(5.0, 5.0, 0.05, "fp32")
    with Runtime(model=family, max_sessions=1, clock=FastClock()) as runtime:
        crowd = Crowd(runtime, 0)
        crowd.grow(1)
        recorders = Recorder(runtime), Recorder(runtime)

        def compared() -> Difference:
            before, after = (
                document.of_run(runtime, r.ticks, (), ceilings=ceilings, threads=1)
                for r in recorders
            )
            return diff(before, after)

        for done in range(1, 81):
            for recorder, pick in zip(recorders, (plain, slow), strict=True):
                monkeypatch.setattr(module, "pick", pick)
                with recorder:
                    crowd.tick()
            if done % 10 == 0 and op in [change.op for change in compared().sure]:
                break
        found = compared()
    assert found.sure and found.sure[0].op == op
    assert found.sure[0].ratio > 1.1
