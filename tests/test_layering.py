"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "kernels": {"kernels"},
    "model": {"kernels", "model"},
    "runtime": {"kernels", "model", "runtime"},
    "bench": {"kernels", "model", "runtime", "bench"},
    "profiling": {"kernels", "model", "runtime", "profiling"},
}
TERMINAL = {"typer", "click", "rich", "matplotlib", "sounddevice"}
"""Libraries of a person's screen and speakers: below bench, only the command line has them."""
NO_TORCH = ("clock", "plan", "scheduler", "admission")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(tree: ast.AST, *, deep: bool, types: bool = True) -> Iterator[tuple[int, str, int]]:
    """(relative level, dotted name, line) of each import.

    deep: also inside functions. types: also under `if TYPE_CHECKING`.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.level, f"{node.module or ''}.{alias.name}", node.lineno
        elif is_type_checking(node) and not types:
            continue
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, deep=deep, types=types)


def violations(path: str, source: str) -> list[str]:
    """What the module at `path` (from the root, "kernels/linear/op.py") imports against the
    rules.
    """
    parts = Path(path).with_suffix("").parts
    folder, tree, found = parts[0], ast.parse(source), []
    in_cli = parts[:2] == ("runtime", "cli")
    for level, name, line in imports(tree, deep=True):
        top, _, rest = name.partition(".")
        if level:
            found.append(f"{path}:{line} relative import")
        elif top in MAY_IMPORT:
            found.append(f"{path}:{line} {name}: write microturn.{name}")
        elif top == "microturn":
            wanted = rest.split(".")
            if wanted[0] not in MAY_IMPORT[folder]:
                found.append(f"{path}:{line} {folder} may not import {wanted[0]}")
            for edge in ("cli", "edges"):
                if wanted[:2] == ["runtime", edge] and not (
                    in_cli or folder in ("bench", "profiling") or parts[:2] == ("runtime", edge)
                ):
                    found.append(f"{path}:{line} only the command line imports runtime.{edge}")
        elif top in TERMINAL and not (in_cli or folder in ("bench", "profiling")):
            found.append(f"{path}:{line} {top} belongs to the command line")
    launches = parts[-1] in ("kernel", "launch") and len(parts) > 2
    if not launches and parts[:2] != ("kernels", "device"):
        for _, name, line in imports(tree, deep=False):
            if name.split(".")[0] == "triton":
                found.append(f"{path}:{line} triton outside kernels, their launchers and functions")
    if folder == "runtime" and parts[1] in NO_TORCH:
        for _, name, line in imports(tree, deep=True, types=False):
            if name.split(".")[0] == "torch":
                found.append(f"{path}:{line} {parts[1]} imports torch")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    paths = [p for p in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in p.parts]
    found = [
        line for p in paths for line in violations(str(p.relative_to(ROOT)), p.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/linear/op.py", "from microturn.model.family import Sampling"),
        ("model/family.py", "def f():\n    import microturn.runtime.plan"),
        ("runtime/plan.py", "from microturn.bench import cli"),
        ("bench/cli.py", "import microturn.profiling.report"),
        ("runtime/session.py", "from . import plan"),
        ("runtime/session.py", "from kernels.rows import RowBatch"),
        ("kernels/linear/op.py", "try:\n    import triton\nexcept ImportError:\n    triton = None"),
        ("kernels/launch.py", "import triton"),
        ("kernels/linear/op.py", "class A:\n    from triton import language as tl"),
        ("kernels/linear/kernel.py", "import microturn.runtime"),
        ("runtime/scheduler.py", "def f():\n    import torch"),
        ("runtime/clock.py", "from torch import Tensor"),
        ("runtime/session.py", "def f():\n    import rich.live"),
        ("runtime/session.py", "from microturn.runtime.cli.app import main"),
    ],
)
def test_a_planted_import_is_found(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/linear/kernel.py", "import triton"),
        ("kernels/linear/launch.py", "import triton"),
        ("kernels/device/rows.py", "import triton"),
        ("kernels/linear/op.py", "def launch():\n    import triton"),
        ("runtime/plan.py", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("runtime/cli/app.py", "import typer\nfrom microturn.runtime.session import Session"),
        ("bench/cli.py", "import rich\nimport microturn.runtime.cli.app"),
        ("model/family.py", "from microturn.kernels.arena import View"),
    ],
)
def test_what_the_rules_allow_passes(path: str, source: str) -> None:
    assert not violations(path, source)
