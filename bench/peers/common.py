"""What the peers share: importing a library, and telling devices apart."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from microturn.bench.providers.base import Unavailable

SITE = "MICROTURN_PEERS"
"""The environment variable with the folder that `kit/build.py` installed into; else peers/site."""


def library(name: str) -> Any:
    """The module of that name, looked for in the kit's folder last. Raises Unavailable with the
    import's own error.
    """
    site = str(Path(os.environ.get(SITE, "peers/site")).absolute())
    if site not in sys.path:
        sys.path.append(site)
    try:
        return import_module(name)
    except Exception as error:  # a library may raise anything while it loads
        raise Unavailable(f"import {name}: {type(error).__name__}: {error}") from error


def on_gpu(device: torch.device, what: str) -> None:
    """Raises Unavailable elsewhere."""
    if device.type != "cuda":
        raise Unavailable(f"{what} runs on a CUDA device, this is {device.type}")


def compiled(function: Any, device: torch.device) -> Any:
    """`torch.compile` of a function on a GPU; on a CPU the function itself."""
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function
