"""The `weights` suite: what storing weights in fewer bits does to random layers of the released
shapes.

Nothing is timed (us_p50 is null). Rows add to schema 1: bits (a weight, scales included),
weight_error and output_error (root mean square of the difference over that of fp32, of the weights
and of the layer's product with random rows), max_error (the largest difference of an output over
the largest output). case: layer, values ("normal", or "outliers": rows and columns of very
different size, one value in a thousand thirty times as large), N outputs, K inputs; dtype is what
the weights are stored as.
"""

from __future__ import annotations

from typing import Any

from microturn.bench import schema
from microturn.bench.machine import meta

LAYERS = {
    "qkvr": (6656, 4096),
    "o": (4096, 4096),
    "expert_w13": (4096, 4096),
    "expert_w2": (4096, 2048),
    "dense_w2": (4096, 16384),
}
"""Outputs and inputs (spec/inkling.md 1.1)."""

DISTRIBUTIONS = ("normal", "outliers")
ROWS = 32


def document(layers: dict[str, tuple[int, int]] | None = None, seed: int = 0) -> dict[str, Any]:
    """A document of the `weights` suite."""
    import torch

    rows = [
        row
        for name, shape in (layers or LAYERS).items()
        for distribution in DISTRIBUTIONS
        for row in measure(name, shape, distribution, seed)
    ]
    return schema.document("weights", meta(threads=torch.get_num_threads()), rows)


def measure(
    layer: str, shape: tuple[int, int], distribution: str, seed: int
) -> list[dict[str, Any]]:
    """One layer, stored in each way."""
    import torch

    from microturn.kernels.quantized import BLOCK
    from microturn.model.checkpoint import WEIGHT_DTYPES
    from microturn.model.checkpoint.quantization import round_weight

    outputs, inputs = shape
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    if distribution == "outliers":
        weight *= torch.randn(outputs, 1, generator=generator).exp()
        weight *= torch.randn(inputs, generator=generator).exp()
        weight[torch.rand(outputs, inputs, generator=generator) < 1e-3] *= 30
    x = torch.randn(ROWS, inputs, generator=generator)
    want = x @ weight.T
    bits = {"fp32": 32.0, "bf16": 16.0, "fp8": 8 + 8 / BLOCK}
    case = f"preset=inkling,layer={layer},values={distribution}"
    rows = []
    for dtype in WEIGHT_DTYPES:
        stored = weight.clone()
        round_weight(stored, dtype, "matrix")
        got = x @ stored.T
        rows.append(
            {
                "op": "weights",
                "case": f"{case},N={outputs},K={inputs}",
                "dtype": dtype,
                "provider": "microturn",
                "us_p50": None,
                "bits": bits[dtype],
                "weight_error": float((stored - weight).norm() / weight.norm()),
                "output_error": float((got - want).norm() / want.norm()),
                "max_error": float((got - want).abs().max() / want.abs().max()),
                "note": "an error, nothing is timed",
            }
        )
    return rows
