"""Whole ticks of a very small model, every op by its Triton kernel in the interpreter, beside the
references: padded buffers against exact ones. Prints a JSON line for each of as many ticks as asked
for. Its own process, since Triton decides at import whether it interprets.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import dataclasses
import importlib
import json
import sys
import warnings
from typing import Any

import numpy as np
import torch

from microturn.kernels.dispatch import launcher
from microturn.kernels.registry import OP_NAMES
from microturn.model.family import Sampling
from microturn.model.interaction import InteractionFamily, InteractionModel, preset
from microturn.model.mimi.config import MimiConfig
from microturn.model.tick import TickInputs, TickLine, TickOutputs, TickSize
from microturn.runtime.arenas import Arenas

GREEDY = Sampling(0.0, 1, 0.0, 1)
PADDED = TickSize(lines=3, rows=10, line_rows=8, patches=0, speaking=1)
WORDS = 61


def small_family() -> InteractionFamily:
    """One sliding and one global layer, the second with experts."""
    tiny = preset("interaction-tiny")
    heads = {
        f"{layers}{name}": value
        for layers in ("", "local_")
        for name, value in (("num_heads", 2), ("num_kv_heads", 1), ("head_dim", 16))
    }
    trunk = dataclasses.replace(
        tiny.trunk,
        **heads,
        hidden_size=32,
        num_layers=2,
        global_layers=(1,),
        sliding_window=4,
        global_window=8,
        rel_extent=6,
        log_floor=4,
        num_experts=4,
        dense_width=32,
        expert_width=16,
        vocab_size=64,
        unpadded_vocab_size=WORDS,
    )
    codec = MimiConfig(
        n_filters=2,
        ratios=(6, 5, 5, 4),
        compress=1,
        dim=32,
        num_layers=1,
        num_heads=2,
        ff_dim=32,
        context=6,
        num_codebooks=2,
        codebook_size=32,
        codebook_dim=16,
    )
    depth = dataclasses.replace(
        tiny.depth,
        hidden_size=32,
        depth_size=32,
        num_heads=2,
        gate_size=32,
        num_codebooks=2,
        codebook_size=32,
        text_vocab_size=WORDS,
    )
    config = dataclasses.replace(
        tiny,
        trunk=trunk,
        codec=codec,
        depth=depth,
        vision=None,
        listen_id=WORDS - 3,
        delegate_id=WORDS - 2,
        start_id=WORDS - 1,
    )
    model = InteractionModel(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return InteractionFamily(model)


def use_kernels(on: bool) -> None:
    """In place of what a CPU gets."""
    for name in OP_NAMES:
        module: Any = importlib.import_module(f"microturn.kernels.{name}.op")
        if not hasattr(module, "_picked"):
            module._picked = module.pick
        module.pick = (lambda op, device, reference: launcher(op)) if on else module._picked


def line(slot: int, tick: int, *, emits: bool, context: int) -> TickLine:
    noise = 0.1 * np.random.default_rng((slot, tick)).standard_normal(1_600)
    ids = list(range(5, 5 + context))
    feedback = int(emits or tick == 0)
    return TickLine(slot, emits, tick == 0, feedback, ids, noise.astype(np.float32), slot, GREEDY)


def main() -> None:
    family, num_slots = small_family(), 4
    exact, padded = (Arenas(family.arena_specs(), num_slots) for _ in range(2))
    for tick in range(int(sys.argv[1])):
        lines = [line(2, tick, emits=True, context=2 * tick)]
        lines.append(line(3, tick, emits=False, context=4))
        made = []
        for arenas, size, kernels in (
            (exact, TickSize.of(lines, family.shape.frames), False),
            (padded, PADDED, True),
        ):
            use_kernels(kernels)
            heard = TickInputs.allocate(size, family.shape)
            said = TickOutputs.allocate(size, family.shape)
            heard.fill(lines, family.shape.frames)
            with torch.inference_mode():
                family.tick(heard, said, arenas)
            made.append(said)
        want, got = made
        speaking = want.text_ids.shape[1]
        error = (got.audio[: len(lines)] - want.audio).square().mean().sqrt()
        state = [
            [arenas.cursor("rows"), arenas.cursor("frames"), arenas.parity]
            for arenas in (exact, padded)
        ]
        print(
            json.dumps(
                {
                    "experts": [want.experts.tolist(), got.experts.tolist()],
                    "ok": [want.ok.tolist(), got.ok.tolist()],
                    "text": torch.equal(want.text_ids, got.text_ids[:, :speaking]),
                    "codes": torch.equal(want.codes, got.codes[:, :speaking]),
                    "audio": float(error / want.audio.square().mean().sqrt()),
                    "state": all(map(torch.equal, *state)),
                    "rows": exact.cursor("rows").tolist(),
                }
            )
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)
    main()
