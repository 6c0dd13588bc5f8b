"""The whole tick on tensors without numbers: nothing is read back, and every launch is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from microturn.kernels.router.work import DECODE_ROWS

PER_LAYER, OF_PREFILL = 9, 12
"""Launches of a layer in a pass, the plan of a pass and collectives apart; and in an append pass of
more rows than the router lists, where the list of experts is made by launches of its own.
"""

OUTSIDE = 60
"""Launches of a tick of two output positions outside of layers and plans."""

RUN = """
import dataclasses, json, sys
from microturn.model.interaction import preset
from microturn.model.tick import TickSize
from microturn.runtime.dry_run import dry_family, dry_tick

for name, weights, layers, size in json.loads(sys.argv[1]):
    config = preset(name)
    if layers:
        some = tuple(i for i in config.trunk.global_layers if i < layers)
        trunk = dataclasses.replace(config.trunk, num_layers=layers, global_layers=some)
        config = dataclasses.replace(config, trunk=trunk)
    family = dry_family(config, weights)
    print(json.dumps(dry_tick(family, TickSize(*size))))

embed = family.model.embed_feedback
family.model.embed_feedback = lambda text, codes: text.tolist() and embed(text, codes)
try:
    dry_tick(family, TickSize(*size))
except Exception as error:
    print(json.dumps(str(error)))
"""

CASES = (
    ("interaction-small", "bf16", 6, (1, 4, 4, 0, 1)),
    ("interaction-small", "fp8", 6, (64, 256, 4, 0, 64)),
    ("interaction-small", "bf16", 6, (16, 512, 64, 512, 16)),
    ("interaction-mini", "fp8", 0, (8, 32, 4, 0, 8)),
)


@pytest.fixture(scope="module")
def printed() -> list[Any]:
    """In a process that interprets no kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", RUN, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def tables(printed: list[Any]) -> list[list[list[Any]]]:
    return printed[: len(CASES)]


def test_a_layer_is_nine_launches_in_every_pass(tables: list[Any]) -> None:
    for case, table in zip(CASES, tables, strict=True):
        inside = [p for p in table if p[1] is not None and p[4] != "plan_step"]
        counts = Counter((p[0], p[1]) for p in inside)
        layers = case[2] or 24
        assert set(counts) == {(p, i) for p in ("append", "decode 1") for i in range(layers)}
        # The trunk's first norm is counted with the first layer.
        for (passed, layer), n in counts.items():
            listed = passed != "append" or case[3][1] <= DECODE_ROWS
            most = PER_LAYER if listed else OF_PREFILL
            assert n - (layer == 0) <= most, (case, passed, layer, n)
        plans = Counter(p[0] for p in table if p[4] == "plan_step")
        assert max(plans.values()) <= 2, "one a pass for each kind of layer"
        outside = [p for p in table if p[1] is None and not p[2].startswith("visual")]
        assert len(outside) <= OUTSIDE, (case, len(outside))


def test_the_table_says_what_a_layer_does_in_which_order(tables: list[Any]) -> None:
    for passed in ("append", "decode 1"):
        ops = [p[3] for p in tables[0] if p[:2] == [passed, 3]]
        assert ops == [
            "linear",
            "qkvr_prologue",
            "streaming_attention",
            "linear",
            "conv_residual_norm",
            "router",
            "grouped_experts",
            "grouped_experts",
            "conv_residual_norm",
        ]
    first, last = tables[0][0], tables[0][-1]
    assert (first[0], first[3]) == ("features", "open_lines")
    assert (last[0], last[3]) == ("codec", "commit_lines")
    order = list(dict.fromkeys(p[0] for p in tables[0]))
    assert order == ["features", "append", "decode 1", "codec"]
    assert all(p[3] for table in tables for p in table), "every kernel is somebody's"


def test_images_are_looked_at_only_where_there_is_room_for_them(tables: list[Any]) -> None:
    seen = [any(p[2].startswith("visual") for p in table) for table in tables]
    assert seen == [False, False, True, False]


def test_a_program_that_reads_the_device_is_found(printed: list[Any]) -> None:
    assert "meta" in printed[-1] and len(printed) == len(CASES) + 1
