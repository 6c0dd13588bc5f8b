"""What a tick would launch on a GPU, found on a machine that has none.

    python -m microturn.runtime.dry_run interaction-small --weights fp8 --lines 64 --rows 256

runs the tick program on "meta" tensors of the real sizes, on which nothing can be read back, and
prints a JSON line a kernel: index, pass, layer, module, op, kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from microturn.kernels.compiled import compiling
from microturn.model.interaction import InteractionFamily, InteractionModel, preset
from microturn.model.interaction.config import InteractionConfig
from microturn.model.tick import TickInputs, TickOutputs, TickSize
from microturn.runtime.arenas import Arenas
from microturn.runtime.kernel_index import Place, placing


def dry_family(config: InteractionConfig, weights: str, tick_ms: int = 100) -> InteractionFamily:
    """A family of these sizes without memory; weights: fp32, bf16 or fp8."""
    with torch.device("meta"):
        model = InteractionModel(config)
    return InteractionFamily(model, tick_ms=tick_ms).to("meta", weights)


def dry_tick(
    family: InteractionFamily, size: TickSize, *, compile_kernels: bool = False
) -> list[Place]:
    """The launches of one tick after the first, in order. Raises what a program raises that reads a
    number off the device, and what a launcher raises that does not take these sizes.
    """
    shape = family.shape

    def memory(nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device="meta")

    heard = TickInputs.carve(memory(TickInputs.nbytes(size, shape)), size, shape)
    said = TickOutputs.carve(memory(TickOutputs.nbytes(size, shape)), size, shape)
    arenas = Arenas(family.arena_specs(), size.lines, "meta")
    with torch.inference_mode(), compiling(), _compiled(compile_kernels):
        family.tick(heard, said, arenas)  # makes what is kept from tick to tick
        with placing(family.model) as places:
            family.tick(heard, said, arenas)
    return places


@contextmanager
def _compiled(wanted: bool) -> Iterator[None]:
    """Not wanted: launches are recorded, and no kernel is compiled, which takes minutes."""
    from triton.runtime.jit import JITFunction

    warmup = JITFunction.warmup
    if not wanted:
        JITFunction.warmup = lambda self, *args, **options: None
    try:
        yield
    finally:
        JITFunction.warmup = warmup


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m microturn.runtime.dry_run")
    parser.add_argument("preset")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--lines", type=int, default=1)
    parser.add_argument("--rows", type=int, default=None, help="4 a line unless given")
    parser.add_argument("--patches", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="every kernel, for sm_90")
    asked: Any = parser.parse_args(arguments)
    family = dry_family(preset(asked.preset), asked.weights)
    rows = asked.rows or 4 * asked.lines
    most = min(rows, family.shape.max_rows) if asked.rows else 4
    size = TickSize(asked.lines, rows, most, asked.patches, asked.lines)
    places = dry_tick(family, size, compile_kernels=asked.compile)
    for index, place in enumerate(places):
        print(json.dumps({"index": index, **place._asdict()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
