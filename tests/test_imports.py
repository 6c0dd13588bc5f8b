"""Every module imports where there is no GPU, and only what launches kernels imports Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "model", "runtime", "bench", "profiling")


def of_kernels(parts: tuple[str, ...]) -> bool:
    """Kernels, what launches them, and the device functions they share."""
    own = len(parts) > 2 and parts[-1] in ("kernel", "launch")
    return own or parts[:2] == ("kernels", "device")


def modules() -> list[str]:
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if "__pycache__" in parts or of_kernels(parts):
                continue
            found.append(".".join(("microturn", *parts)).removesuffix(".__init__"))
    return found


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees no GPU, away from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )


IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    sys.exit(f"{name} imports triton") if "triton" in sys.modules else None
"""


def test_every_module_imports_without_gpu_and_without_triton() -> None:
    result = python(IMPORT_EACH, *modules())
    assert result.returncode == 0, result.stderr


def test_a_triton_import_would_be_seen() -> None:
    code = "import sys; sys.modules['triton'] = sys" + IMPORT_EACH
    result = python(code, "microturn.runtime.plan")
    assert result.returncode == 1
    assert result.stderr == "microturn.runtime.plan imports triton\n"


def test_the_door_and_the_scheduler_import_no_torch() -> None:
    """`import microturn.runtime` is cheap; clock, plan, scheduler and admission are pure Python."""
    names = ("clock", "plan", "scheduler", "admission")
    wanted = [f"microturn.runtime.{n}" for n in names if (ROOT / "runtime" / f"{n}.py").exists()]
    assert len(wanted) >= 3
    result = python(IMPORT_EACH.replace("triton", "torch"), "microturn.runtime", *wanted)
    assert result.returncode == 0, result.stderr
