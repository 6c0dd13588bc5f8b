"""Launch parameters as data: `configs/<device>.json` in an op's folder, chosen by a pure function.

A file is a list of entries, `{"when": {...}, "use": {...}}`, tried from the top; the first whose
conditions all hold is used. A condition `max_T: 16` holds for T <= 16, `dtype: "fp8"` for that
value. Measured on the device named; other devices take the H200's.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

DEFAULT = "NVIDIA_H200"
Config = dict[str, Any]


@cache
def table(op: str, device: str = DEFAULT, kernel: str | None = None) -> tuple[Config, ...]:
    """The entries of an op for a device, those of the H200 where it has no file of its own.

    kernel: for ops with several kernels, the key of the file under which the list stands.
    """
    folder = files(f"microturn.kernels.{op}").joinpath("configs")
    path = folder.joinpath(f"{device}.json")
    if not path.is_file():
        path = folder.joinpath(f"{DEFAULT}.json")
    loaded = json.loads(path.read_text("utf-8"))
    return tuple(loaded if kernel is None else loaded[kernel])


def choose(op: str, kernel: str | None = None, device: str = DEFAULT, **facts: Any) -> Config:
    """The `use` of the first entry whose conditions hold. Raises LookupError where none does."""
    for entry in table(op, device, kernel):
        if all(_holds(name, bound, facts) for name, bound in entry["when"].items()):
            return dict(entry["use"])
    raise LookupError(f"{op}: no launch parameters for {facts}; add an entry to its configs/")


def _holds(name: str, bound: Any, facts: dict[str, Any]) -> bool:
    if name.startswith("max_"):
        return bool(facts[name.removeprefix("max_")] <= bound)
    return bool(facts[name] == bound)
