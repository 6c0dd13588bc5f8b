"""The two suites about checkpoints, at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest

from microturn.bench import loading, schema, weights


def test_loading_measures_a_process_of_its_own_and_stays_within_its_bar(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = loading.document(
        30_000_000, ("fp8",), tmp_path, progress=lambda *read: told.append(read)
    )
    schema.validate(made)
    (row,) = made["rows"]
    assert told[-1] == (row["file_bytes"], row["file_bytes"])
    assert row["model_bytes"] > 1.9 * row["file_bytes"] > 0
    assert row["peak_bytes"] > row["libraries_bytes"] + row["model_bytes"] / 2
    assert 0 < row["over_bytes"] <= loading.BAR_BYTES and "within" in row["note"]
    assert 0.01 < row["max_rel_err"] <= 1 / 16
    assert list(tmp_path.iterdir()) == []


def test_the_size_asked_for_is_the_size_made() -> None:
    from microturn.model.inkling.release_config import ReleaseConfig

    config = loading.config_of(4_000_000_000)
    assert isinstance(config, ReleaseConfig)
    trunk = config.trunk
    experts = 3 * trunk.hidden_size * trunk.expert_width * trunk.num_experts * 3
    assert 0.9 * 4e9 < 2 * experts < 4.05e9


def test_more_than_fits_is_refused() -> None:
    with pytest.raises(MemoryError, match="make a smaller file"):
        loading.document(10**15, ("fp32",))


def test_a_load_that_dies_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(loading.LoadingFailed, match="not a checkpoint"):
        loading.measure(tmp_path, "fp32", 1)


def test_errors_of_storage_are_ordered_and_of_known_size() -> None:
    made = weights.document({"small": (256, 512)})
    schema.validate(made)
    by = {(row["case"].split(",")[2], row["dtype"]): row for row in made["rows"]}
    for values in ("values=normal", "values=outliers"):
        exact, half, eight = (by[values, dtype] for dtype in ("fp32", "bf16", "fp8"))
        assert exact["weight_error"] == exact["output_error"] == 0
        assert 0.001 < half["weight_error"] < 0.003
        assert 0.02 < eight["weight_error"] < 0.035
        assert eight["output_error"] < 0.04
