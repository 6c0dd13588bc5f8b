"""Versions that bits may depend on. No torch import: installed metadata says them."""

from __future__ import annotations

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Of microturn, python, numpy and torch."""
    found = {"python": platform.python_version()}
    for name in ("microturn", "numpy", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
