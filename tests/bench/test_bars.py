"""Every bar that is set for the kernels on an H200 stands at a case, in its dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from microturn.bench import rows
from microturn.bench.subjects import get, subjects
from microturn.kernels.registry import Case
from microturn.kernels.streaming_attention.cases import BENCH_CASES

BF16, FP8 = "bf16", "fp8"
WHOLE = "H=4096,I=1024,E=256,A=6,Sh=2"
SHARD = "H=4096,I=256,E=256,A=6,Sh=2"
ATTEND = "H=32,Hkv=8,D=128"
DEPTH = "H=4096,D=1024,L=6,Q=8,V=2048"


def table() -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """(op, parts of a case's id, dtype, what is asked of it)."""
    for t in (1, 16, 64):
        for shape in ("N=6656,K=4096", "N=25128,K=4096"):
            for dtype in (BF16, FP8):
                yield "linear", f"T={t},{shape}", dtype, {"of_floor": 0.88}
    for t, us, share, narrow in (
        (1, 60, 0.78, 0.62),
        (4, 170, 0.86, 0.80),
        (8, 300, 0.90, 0.90),
        (32, 880, 0.92, 0.90),
        (256, 1620, 0.93, 0.90),
    ):
        yield "grouped_experts", f"T={t},{WHOLE}", BF16, {"us": us, "of_floor": share}
        yield "grouped_experts", f"T={t},{WHOLE}", FP8, {"of_floor": narrow}
    for t, us in ((3, 38), (64, 335), (192, 420)):
        yield "grouped_experts", f"T={t},{SHARD}", BF16, {"us": us}
    yield "grouped_experts", "T=32768", BF16, {"tflops": 560}
    yield "grouped_experts", "T=2731", BF16, {"of_floor": 0.85}  # 64 rows an expert
    for dtype in (BF16, FP8):
        yield "streaming_attention", f"B=1,T=1,{ATTEND},window=1024", dtype, {"us": 6.0}
        yield "prologue_attention", f"B=1,T=1,{ATTEND},window=1024", dtype, {"us": 8.5}
        for count, at_most in ((1, 1.03), (4, 1.05), (64, 1.15)):
            parts = f"B=8,T={8 * count},{ATTEND},window=8192,extent=1024,pos={8192 - count}"
            yield "streaming_attention", parts, dtype, {"times_beside": at_most}
    for sessions, us in ((1, 120), (16, 200), (64, 450)):
        yield "mimi_decode", f"S={sessions}", BF16, {"us": us, "times_peer": 5}
    for sessions, us in ((1, 750), (64, 900)):
        yield "depth_head", f"B={sessions},{DEPTH}", BF16, {"us": us, "times_peer": 3}


TABLE = tuple(table())


def cases_of(op: str, parts: str) -> list[Case]:
    wanted = set(parts.split(","))
    return [case for case in get(op).bench_cases if wanted <= set(case.id.split(","))]


def asked(op: str, case: Case, dtype: str) -> dict[str, Any]:
    found = rows.asked(rows.bar_of(case, get(op).dtypes, dtype))
    return {name.removeprefix("bar_"): value for name, value in found.items()}


@pytest.mark.parametrize(("op", "parts", "dtype", "bar"), TABLE, ids=lambda v: str(v))
def test_a_bar_stands_at_its_case(op: str, parts: str, dtype: str, bar: dict[str, float]) -> None:
    (case,) = cases_of(op, parts)
    assert dtype in get(op).dtypes
    assert bar.items() <= asked(op, case, dtype).items()


@pytest.mark.parametrize("dtype", [BF16, FP8])
def test_attention_is_asked_by_the_bytes_of_keys_and_values(dtype: str) -> None:
    """From 0.5 GB on the ceiling and no peer faster, from 64 to 134 MB 3.6 TB/s, with a few rows a
    session.
    """
    large = middle = 0
    for case in BENCH_CASES:
        if case.kind != "pages" or max(case.counts) > 4 or not case.extent or case.sinks:
            continue
        positions = sum(case.starts) + sum(case.counts)
        kept = 2 * positions * case.Hkv * case.D * (2 if dtype == BF16 else 1)
        bar = asked("streaming_attention", case, dtype)
        if kept >= 5e8:
            assert bar["of_floor"] == 0.97 and bar["times_peer"] == 1.0
            large += 1
        elif 64e6 <= kept <= 135e6:
            assert kept / bar["us"] / 1e6 == pytest.approx(3.6, rel=0.01)
            middle += 1
    assert large >= 3 and middle >= 3


def test_a_case_that_is_compared_with_another_names_one_of_its_op() -> None:
    found = 0
    for op, subject in subjects().items():
        ids = {case.id for case in subject.bench_cases}
        for case in subject.bench_cases:
            for dtype in subject.dtypes:
                bar = asked(op, case, dtype)
                if "beside" in bar:
                    assert bar["beside"] in ids - {case.id}
                    found += 1
    assert found == 6
