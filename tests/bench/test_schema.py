from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from microturn.bench import schema

TICK: dict[str, Any] = {
    "op": "tick",
    "case": "preset=interaction-tiny,S=1,tick_ms=100",
    "dtype": "fp32",
    "provider": "microturn",
    "us_p20": 38_000.0,
    "us_p50": 39_000.0,
    "us_p80": 41_000.0,
    "step_ms_p50": 39.0,
    "step_ms_p99": 52.0,
    "step_ms_p999": 60.0,
    "step_ms_max": 61.0,
    "ticks": 3000,
    "misses": 0,
    "miss_rate_upper95": 0.001,
    "sessions": 1,
    "note": "",
}
META = {"device": "AMD EPYC 2 cores", "torch": "2.13.0", "date": "2026-11-20T10:00:00+00:00"}


def good() -> dict[str, Any]:
    return schema.document("tick", META, [copy.deepcopy(TICK)])


def test_a_written_document_reads_back_as_the_same_document(tmp_path: Path) -> None:
    path = tmp_path / "AMD_EPYC_2_cores" / "tick.json"
    schema.write(path, good())
    assert json.loads(path.read_text()) == good() == json.loads(schema.dumps(good()))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"op": "tock"}, "op unknown 'tock'"),
        ({"case": "interaction-tiny at 100"}, "case"),
        ({"case": "S=1,preset=interaction-tiny"}, "begins with preset="),
        ({"us_p20": 50_000.0}, "us_p20 <= us_p50"),
        ({"us_p80": None}, "us_p80"),
        ({"us_p50": None, "note": ""}, "note"),
        ({"misses": 3001}, "misses"),
        ({"step_ms_p999": float("nan")}, "step_ms_p999"),
        ({"host": {"load": float("inf")}}, "holds inf"),
    ],
)
def test_a_wrong_row_is_refused_by_name_and_never_reaches_the_disk(
    tmp_path: Path, change: dict[str, Any], names: str
) -> None:
    document = good()
    document["rows"][0].update(change)
    with pytest.raises(schema.SchemaError) as caught:
        schema.write(tmp_path / "x.json", document)
    assert names in str(caught.value)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("field", schema.TICK_NUMBERS)
def test_a_tick_row_without_one_of_its_numbers_is_refused(field: str) -> None:
    document = good()
    del document["rows"][0][field]
    with pytest.raises(schema.SchemaError, match=field):
        schema.validate(document)


def test_a_provider_that_could_not_be_measured_says_why_instead_of_a_number() -> None:
    row = {"op": "linear", "case": "T=8,N=64,K=64", "dtype": "bf16", "provider": "flash_attn"}
    schema.document("ops", META, [{**row, "us_p50": None, "note": "needs a GPU"}])


def test_an_op_row_carries_its_costs_or_null() -> None:
    row = {key: TICK[key] for key in ("dtype", "provider", "us_p20", "us_p50", "us_p80")}
    row |= {"op": "linear", "case": "T=8,N=64,K=64"}
    with pytest.raises(schema.SchemaError, match="bytes"):
        schema.document("ops", META, [row])
    schema.document("ops", META, [row | dict.fromkeys(schema.OP_NUMBERS)])


def test_an_oracle_row_counts_and_is_not_timed() -> None:
    row: dict[str, Any] = {"op": "oracle", "case": "family=mimi,seed=0", "dtype": "fp32"}
    row |= {"provider": "microturn", **dict.fromkeys(schema.ORACLE_NUMBERS, 1)}
    schema.document("oracle_long", META, [row])
    for field in schema.ORACLE_NUMBERS:
        with pytest.raises(schema.SchemaError, match=field):
            schema.document("oracle_long", META, [row | {field: None}])
    with pytest.raises(schema.SchemaError, match="failures cannot exceed"):
        schema.document("oracle_long", META, [row | {"failures": 2}])


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "bench/results").glob("*/*.json")),
    ids=lambda path: path.stem,
)
def test_committed_results_are_of_the_schema_and_filed_under_their_device(path: Path) -> None:
    from microturn.runtime.machine import slug

    document = json.loads(path.read_text())
    schema.validate(document)
    device = document["meta"]["device"]
    if path.parent.name == "predicted":  # by a model: never beside what was measured
        assert device == "predicted for NVIDIA H200"
        assert all(r["provider"] == "predicted" or r["us_p50"] is None for r in document["rows"])
    else:
        assert slug(device) == path.parent.name
        assert all(row["provider"] != "predicted" for row in document["rows"])
    assert document["suite"] == path.stem
