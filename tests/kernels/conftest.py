"""Kernels of these tests run on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

# Read by Triton when it decorates a kernel, so before the first import of one.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> str:
    """Of the tensors that kernels get."""
    return "cuda" if torch.cuda.is_available() else "cpu"
