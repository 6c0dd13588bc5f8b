"""The ops suite with a fake op and fake providers: what is wrong is not timed, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from microturn.bench import check, rows, schema, tables
from microturn.bench.ops import Bench, failed
from microturn.bench.providers.base import DoesLess, Provider, Unavailable
from microturn.bench.providers.every import every, names, pick
from microturn.bench.rows import OURS
from microturn.bench.subjects import Item, select
from microturn.kernels.linear.cases import LinearCase
from microturn.kernels.registry import OPS, Bar, OpInputs
from microturn.runtime.ceilings import Ceilings
from microturn.runtime.ceilings import measure as measure_ceilings
from microturn.runtime.timing import CpuTimer, Times

CEILINGS = Ceilings(read_gbps=10.0, copy_gbps=10.0, tflops=0.1, dtype="fp32")
BAR = Bar(us=1e9, of_floor=None, times_peer=2.0)
CASE = LinearCase(3, 160, 64, "a fake op's only shape", BAR)
ITEM = Item("linear", CASE.id, "fp32")


class Doubling:
    """x is doubled; state counts the calls."""

    name = "linear"
    cases = (CASE,)
    bench_cases = (CASE,)
    dtypes = ("fp32",)
    run = staticmethod(lambda x, weights, state, rows: 2 * x)
    reference = staticmethod(lambda x, weights, state, rows: (state.add_(1), 2 * x)[1])

    @staticmethod
    def make_inputs(case: Any, *, seed: int, dtype: Any, device: Any) -> OpInputs:
        g = torch.Generator().manual_seed(seed)
        return OpInputs(torch.randn(5, generator=g), torch.zeros(1), torch.zeros(1), None)


def provider(name: str, call: Callable[[OpInputs], Any], **more: Any) -> Provider:
    def prepare(op: str, case: Any, dtype: str, inputs: OpInputs, device: Any) -> Any:
        return lambda: call(inputs)

    fake = {"name": name, "supports": lambda *a: True, "prepare": prepare, **more}
    return SimpleNamespace(**fake)  # type: ignore[return-value]


def ours(inputs: OpInputs) -> torch.Tensor:
    inputs.state.add_(1)
    return 2 * inputs.x


def bench() -> Bench:
    return Bench(CpuTimer(0.001), CEILINGS, find=lambda name: Doubling())


def measured(*providers: Provider) -> list[rows.Row]:
    found = rows.beside_peers(bench().measure(ITEM, providers))
    schema.document("ops", {"device": "x", "torch": "x", "date": "x"}, found)
    return found


def test_a_right_result_is_timed_and_held_against_its_floor_and_its_bar() -> None:
    (row,) = measured(provider(OURS, ours))
    assert row["ok"] and row["max_rel_err"] == 0.0 and row["repeats"] >= 5
    assert 0 < row["us_p20"] <= row["us_p50"] <= row["us_p80"]
    assert row["bytes"] == CASE.bytes(4) and row["flops"] == CASE.flops
    assert row["floor_us"] == pytest.approx(CASE.bytes(4) / 10e3, abs=1e-3)
    assert row["of_floor"] == pytest.approx(row["floor_us"] / row["us_p50"], rel=0.02, abs=1e-4)
    assert row["bar_us"] == 1e9 and row["meets_bar"] is True
    assert not failed([row])


def test_a_wrong_result_gets_no_time_and_ours_is_a_failure() -> None:
    wrong = provider("peer", lambda inputs: 2.01 * inputs.x)
    mine = provider(OURS, lambda inputs: 2 * inputs.x + 1)
    peer, own = measured(wrong, mine)
    assert peer["us_p50"] is None and "wrong: error ratio 0.005" in peer["note"]
    assert own["us_p50"] is None and failed([peer, own]) == [own]


@pytest.mark.parametrize(
    "result",
    [
        lambda x: torch.full_like(x, float("nan")),
        lambda x: x[:3],
        lambda x: (2 * x, x),
    ],
    ids=["NaN", "another shape", "more tensors"],
)
def test_nan_and_other_shapes_are_wrong(result: Callable[[Any], Any]) -> None:
    (row,) = measured(provider("peer", lambda inputs: result(inputs.x)))
    assert row["us_p50"] is None and "error ratio inf" in row["note"]


def test_our_state_is_compared_too_and_a_peers_is_not() -> None:
    forgets = [provider(name, lambda inputs: 2 * inputs.x) for name in (OURS, "peer")]
    own, peer = measured(*forgets)
    assert own["us_p50"] is None and peer["us_p50"] is not None


def test_a_peer_that_cannot_run_has_a_null_row_with_the_reason_and_one_that_is_not_asked_none() -> (
    None
):
    def cannot(*arguments: Any) -> Any:
        raise Unavailable("nvcc: error: no such architecture")

    def breaks(*arguments: Any) -> Any:
        raise RuntimeError("x" * 5000 + " kernel.cu(7): expected a ;")

    absent = provider("absent", ours, prepare=cannot)
    broken = provider("broken", ours, prepare=breaks)
    other = provider("other", ours, supports=lambda *a: False)
    first, second = measured(absent, broken, other)
    assert first["note"] == "nvcc: error: no such architecture" and first["ok"] is None
    assert second["note"].endswith("expected a ;") and len(second["note"]) < 800
    assert second["ok"] is False and not failed([first, second])


def test_a_peer_that_does_less_is_held_to_what_it_does() -> None:
    def expected(op: str, case: Any, dtype: str, inputs: OpInputs) -> tuple[Any, str]:
        return inputs.x, "the doubling"

    less = provider("less", lambda inputs: inputs.x, expected=expected)
    assert isinstance(less, DoesLess) and not isinstance(provider("x", ours), DoesLess)
    (row,) = measured(less)
    assert row["us_p50"] is not None and row["note"] == "leaves out the doubling"


def test_times_faster_than_the_fastest_peer_judges_the_bar() -> None:
    def row(name: str, us: float) -> rows.Row:
        times = Times(us, us, us, 9, "host", "warm")
        known = rows.costs(CASE, "fp32", CEILINGS)
        return rows.timed(ITEM, name, known, times, 0.0, 1, BAR, "")

    own, *_ = rows.beside_peers([row(OURS, 10.0), row("a", 40.0), row("b", 25.0)])
    assert own["times_peer"] == 2.5 and own["meets_bar"] is True
    own, *_ = rows.beside_peers([row(OURS, 10.0), row("a", 19.0), row("reference", 900.0)])
    assert own["times_peer"] == 1.9 and own["meets_bar"] is False
    assert tables.verdict(own) == "below bar"
    assert tables.op_line(own)["bar"] == "<= 1e+09 us, >= 2 x"


def test_the_fraction_governs_where_time_and_fraction_disagree() -> None:
    row = {"us_p50": 50.0, "of_floor": 0.9, "tflops": 1.0}
    assert rows.judge({**row, "bar_us": 40.0, "bar_of_floor": 0.88}) is True
    assert rows.judge({**row, "bar_us": 60.0, "bar_of_floor": 0.95}) is False
    assert rows.judge({**row, "bar_us": 60.0}) is True
    assert rows.judge({**row, "bar_tflops": 2.0}) is False
    assert rows.judge(row) is None


def test_a_bar_holds_for_the_first_dtype_and_says_what_holds_for_eight_bits() -> None:
    case = LinearCase(1, 64, 64, "", Bar(us=5.0, of_floor=0.8, fp8=Bar(of_floor=0.6)))
    assert rows.bar_of(case, ("bf16", "fp8"), "bf16") == case.bar
    assert rows.bar_of(case, ("bf16", "fp8"), "fp8") == Bar(of_floor=0.6)
    assert rows.bar_of(case, ("bf16", "fp8"), "fp32") is None
    assert rows.bar_of(LinearCase(1, 64, 64, "", Bar(us=5.0)), ("bf16", "fp8"), "fp8") is None
    assert rows.asked(case.bar) == {"bar_us": 5.0, "bar_of_floor": 0.8}


def test_a_case_is_held_against_another_by_the_same_provider() -> None:
    bar = Bar(of_floor=0.5, times_beside=1.05, beside="T=2")

    def row(case: str, us: float, provider: str = OURS, dtype: str = "bf16") -> rows.Row:
        of_floor = 5.0 / us
        row = {"op": "linear", "case": case, "dtype": dtype, "provider": provider}
        row |= {"us_p50": us, "of_floor": of_floor, "tflops": None}
        return row | (rows.against(bar, row) if case == "T=1" else {})

    others = [row("T=2", 2.0, "a"), row("T=2", 1.0, OURS, "fp8")]
    held, *_ = rows.beside_cases([row("T=1", 8.0), row("T=2", 8.0), *others])
    assert held["times_beside"] == 1.0 and held["meets_bar"] is True
    assert tables.bar_text(held) == ">= 50 %, <= 1.05 x without"
    held, *_ = rows.beside_cases([row("T=1", 8.0), row("T=2", 7.0), *others])
    assert held["times_beside"] == 1.143 and held["meets_bar"] is False
    held, *_ = rows.beside_cases([row("T=1", 20.0), row("T=2", 20.0)])
    assert held["meets_bar"] is False, "its fraction"
    alone, *_ = rows.beside_cases([row("T=1", 8.0), *others])
    assert "times_beside" not in alone and alone["meets_bar"] is True


def test_what_the_events_cost_is_shown_and_not_taken_off() -> None:
    row = {"us_p50": 7.0, "bar_us": 6.0, "floor_us": 1.0, "bytes": 1, "flops": 1}
    row |= {"meets_bar": False, "of_floor": 1 / 7, "tflops": 1.0}
    assert rows.net(row, None) == {}
    assert rows.net(row, 1.5) == {"us_net": 5.5, "meets_bar_net": True}
    assert rows.net(row, 0.5) == {"us_net": 6.5}
    assert tables.verdict(row | rows.net(row, 1.5)) == "yes, net"


def test_integers_may_differ_in_near_ties_only() -> None:
    ids = torch.arange(4000)
    near = ids.clone()
    near[7] = 0
    assert check.error((near,), (ids,)) == 0.0
    near[:8] = -1
    assert check.error((near,), (ids,)) == float("inf")


def test_a_reference_that_cannot_run_on_the_device_runs_on_the_cpu() -> None:
    def reference(x: Any, weights: Any, state: Any, rows: Any) -> Any:
        if torch.empty(0).is_meta:
            raise RuntimeError("indices should be on the CPU")
        return 2 * x

    inputs = OpInputs(torch.ones(3), None, torch.zeros(1), None)
    found = check.expected(reference, inputs, torch.device("meta"))
    assert found.note == "checked on the CPU" and found.result.is_meta
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "CPU_BYTES", 1)
        with pytest.raises(check.Uncheckable, match="indices should be on the CPU"):
            check.expected(reference, inputs, torch.device("meta"))


def test_ceilings_are_measured_here() -> None:
    found = measure_ceilings(CpuTimer(0.001, least=1, most=2))
    assert found.dtype == "fp32" and min(found.read_gbps, found.copy_gbps, found.tflops) > 0
    assert set(found.as_meta()) == {"read_gbps", "copy_gbps", "fp32_tflops"}
    assert CEILINGS.floor_us(10_000, 10) == pytest.approx(1.0)
    assert CEILINGS.floor_us(10, 10_000_000) == pytest.approx(100.0)


def test_every_item_walks_the_registry() -> None:
    small = select(small=True)
    assert {item.op for item in small} >= set(OPS) and {item.dtype for item in small} == {"fp32"}
    real = select(["linear"])
    assert {item.dtype for item in real} == {"bf16", "fp8"}
    assert len(real) == 2 * len(OPS["linear"].bench_cases)
    some = select(["linear"], ["T=1,N=6656", "T=16"], ["fp8"])
    assert some and all(item.dtype == "fp8" for item in some)
    assert {item.case.split(",")[0] for item in some} == {"T=1", "T=16"}


def test_providers_are_ours_and_those_of_the_peers_table() -> None:
    known = [p.name for p in every()]
    assert known[:2] == [OURS, "reference"] and len(set(known)) == len(known)
    assert "reference" not in names() and names(["reference"]) == ["reference"]
    with pytest.raises(KeyError, match="known: microturn"):
        pick(["cublas9000"])


def test_a_table_is_as_wide_as_its_cells() -> None:
    text = tables.table({"a": "name", "b": "n"}, [{"a": "x", "b": "10"}, {"a": "long"}])
    assert text.splitlines() == ["name   n", "x     10", "long"]


def test_the_documents_of_a_run_are_drawn(tmp_path: Path) -> None:
    from microturn.bench import report

    found = measured(provider(OURS, ours), provider("peer", lambda inputs: 2 * inputs.x))
    found += measured(provider("absent", lambda inputs: 0))
    made = schema.document("ops", {"device": "x", "torch": "x", "date": "2026"}, found)
    path = tmp_path / "machine" / "ops.json"
    schema.write(path, made)
    drawn = report.draw([path], tmp_path / "charts")
    assert [p.name for p in drawn] == ["machine_ops_of_floor.png", "machine_ops_times_peer.png"]
    for png in drawn:
        assert png.read_bytes().startswith(b"\x89PNG\r\n") and png.stat().st_size > 5000
    assert report.draw([path])[0].parent == path.parent
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="schema must be 1"):
        report.draw([path])
