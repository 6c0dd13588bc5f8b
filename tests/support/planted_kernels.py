"""Kernels with faults that the compile gate must name. Run as a script: one JSON list a kernel."""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
import triton.language as tl

from microturn.kernels.compiled import compiling, inspect
from microturn.kernels.gate import problems_of
from microturn.kernels.launch import launch


@triton.jit
def product(x_ptr, y_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(x_ptr + m[:, None] * K + k[None, :])
    b = tl.load(x_ptr + k[:, None] * N + n[None, :])
    tl.store(y_ptr + m[:, None] * N + n[None, :], tl.dot(a, b, input_precision="ieee"))


@triton.jit
def every_other(x_ptr, y_ptr):
    at = tl.arange(0, 1024)
    tl.store(y_ptr + at, tl.load(x_ptr + 2 * at))


@triton.jit
def one_wide(x_ptr, y_ptr, z_ptr):
    at = tl.arange(0, 1024)
    tl.store(z_ptr + at, tl.load(x_ptr + at) + tl.load(y_ptr + 2 * at))


def found(kernel: Any, dtype: torch.dtype, streams: int = 1, **options: Any) -> list[str]:
    inputs = [torch.empty(1 << 20, dtype=dtype, device="meta") for _ in range(streams)]
    with compiling() as launches:
        launch(kernel, (1,), *inputs, torch.empty(1 << 20, device="meta"), **options)
    return list(problems_of(launches[0], inspect(launches[0]), {}))


def main() -> None:
    sizes = {"M": 64, "N": 64, "K": 64}
    print(json.dumps(found(product, torch.bfloat16, num_warps=4, **sizes)))  # nothing wrong
    print(json.dumps(found(product, torch.float32, num_warps=4, **sizes)))
    print(json.dumps(found(product, torch.bfloat16, num_warps=1, M=256, N=256, K=32)))
    print(json.dumps(found(product, torch.bfloat16, num_warps=4, M=64, N=256, K=512)))
    print(json.dumps(found(every_other, torch.float32, num_warps=4)))
    print(json.dumps(found(one_wide, torch.float32, 2, num_warps=4)))


if __name__ == "__main__":
    main()
