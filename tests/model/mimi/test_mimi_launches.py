"""How many kernels a GPU would run for a frame, counted where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import microturn.kernels.codec_transformer as transformer

TRANSFORMER = (Path(transformer.__file__).parent / "launch.py").exists()

COUNT = """
import json
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from microturn.kernels.compiled import compiling
from microturn.kernels.rows import RowBatch
from microturn.model.mimi import Mimi, MimiConfig
from microturn.model.mimi.layers import Transformer
from microturn.runtime.arenas import Arenas

TRANSFORMER = {transformer}
if not TRANSFORMER:
    Transformer.forward = lambda self, x, state, rows: x

class Torchs(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {{}}))
        name = function.name()
        views = ("empty", "view", "reshape", "detach", "select", "slice", "alias", "unsqueeze")
        if not any(view in name for view in views):
            called.append(name)
        return result

S = 3
counts = {{}}
with torch.device("meta"):
    codec = Mimi(MimiConfig.released()).to(torch.bfloat16)
with torch.inference_mode():
    for name, x in (("decode", torch.zeros(S, 8, dtype=torch.int64, device="meta")),
                    ("encode", torch.zeros(S * 1920, device="meta"))):
        side = "decoder" if name == "decode" else "encoder"
        arenas = Arenas(getattr(codec, side + "_arena_specs")("c"), S, "meta")
        state = getattr(codec, "bind_" + side)(arenas, "c")
        for _ in range(2):  # the first folds what does not change
            rows = RowBatch.build(range(S), [1] * S, [5] * S, device="meta")
            called = []
            with compiling() as launches, Torchs():
                result = getattr(codec, name)(x, state, rows)
        counts[name] = [[l.name for l in launches], called, list(result.shape), str(result.dtype)]
print(json.dumps(counts))
"""


@pytest.mark.slow
def test_a_frame_is_few_launches_and_nothing_between_them() -> None:
    """Of every session at once: 13 a decode (stretch goal: 15) and an encode beside the
    transformer's, and no torch kernel between ours.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", COUNT.format(transformer=TRANSFORMER)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    codec = {"sum_books", "transpose_channels", "transpose_tiles", "conv_tiles", "unit_tiles"}
    codec.add("quantize_books")
    for name, shape, dtype in (
        ("decode", [3 * 1920], "torch.float32"),
        ("encode", [3, 8], "torch.int64"),
    ):
        launches, between, got, kind = counts[name]
        assert (got, kind) == (shape, dtype)
        assert len([n for n in launches if n in codec]) == 13, launches
        assert len(launches) <= 15, launches
        if not TRANSFORMER:
            assert not between, between
