"""Launches the kernels of rvq_quantize: one cooperative launch, stage by stage in the interpreter.

A program for every tile of a book keeps all of the machine reading tables; a program for every tile
of rows would stream 17 MB through one multiprocessor when one session speaks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microturn.kernels.carry import line_arguments
from microturn.kernels.causal_conv.launch import power_of_two
from microturn.kernels.launch import interpreted, launch, num_sms, zeroed
from microturn.kernels.rows import RowBatch
from microturn.kernels.rvq_quantize.kernel import project_stage, quantize_books, search_stage
from microturn.kernels.rvq_quantize.reference import QuantizeWeights

BLOCK_T, BLOCK_N, BLOCK_E, BLOCK_K = 16, 16, 32, 32


def rvq_quantize_kernel(
    x: Tensor,
    weights: QuantizeWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `rvq_quantize`."""
    t = int(x.shape[0])
    books, size, d = weights.tables.shape
    device = x.device
    codes = torch.empty(t, books, dtype=torch.int64, device=device) if out is None else out
    if t == 0:
        return codes
    tiles_t, tiles_e = -(-t // BLOCK_T), -(-size // BLOCK_E)
    left = torch.empty(2, 2, t, d, dtype=torch.float32, device=device)
    best = torch.empty(2, tiles_e, t, dtype=torch.float32, device=device)
    index = torch.empty(2, tiles_e, t, dtype=torch.int32, device=device)
    lines = None if rows is None else line_arguments(x, None, rows)
    # Without rows nothing is read through these.
    tensors = (index, index, index, index) if lines is None else lines.tensors[2:]
    numbers = (1, 1) if lines is None else lines.numbers
    projections = (weights.semantic, weights.acoustic)
    search: dict[str, Any] = {
        "D": d,
        "BOOKS": books,
        "SIZE": size,
        "SEMANTIC": weights.num_semantic,
        "UP": 1 if lines is None else lines.constants["UP"],
        "HAS_ROWS": lines is not None,
        "TILES_E": tiles_e,
        "POW_TILES_E": power_of_two(tiles_e),
        "BLOCK_T": BLOCK_T,
        "BLOCK_E": BLOCK_E,
        "BLOCK_K": BLOCK_K,
    }
    project: dict[str, Any] = {"DIM": int(x.shape[1]), "BLOCK_N": BLOCK_N}
    buffers = (weights.tables, weights.half_norms, codes, left, best, index)
    programs = min(num_sms(device), tiles_e * tiles_t)
    if interpreted():
        blocks: dict[str, Any] = {"BLOCK_T": BLOCK_T, "BLOCK_K": BLOCK_K, "D": d}
        launch(
            project_stage, (programs,), x, *projections, left, t, x.stride(0), **project, **blocks
        )
        for book in range(books + 1):
            launch(
                search_stage,
                (programs,),
                book,
                *buffers,
                *tensors,
                *numbers,
                t,
                codes.stride(0),
                **search,
            )
        return codes
    launch(
        quantize_books,
        (programs,),
        x,
        *projections,
        *buffers,
        zeroed("rvq_quantize", 2, device),
        *tensors,
        *numbers,
        t,
        x.stride(0),
        codes.stride(0),
        num_warps=4,
        barriers=books + 1,
        launch_cooperative_grid=True,
        **project,
        **search,
    )
    return codes
