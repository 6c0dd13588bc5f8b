"""What is installed: the package list, its files, the commands, the documents' links, the public
names.
"""

from __future__ import annotations

import fnmatch
import importlib
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "model", "runtime", "bench", "profiling")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")

PUBLIC = {
    "Answer",
    "AudioError",
    "BackgroundError",
    "Clock",
    "CloseCode",
    "CloseReason",
    "ConfigError",
    "ContextError",
    "DelegationEvent",
    "DelegationFailure",
    "DelegationKind",
    "DelegationRequest",
    "DumpError",
    "FastClock",
    "HttpBackground",
    "ImageError",
    "InputError",
    "LatenessPolicy",
    "Line",
    "MicroturnError",
    "Output",
    "QueueFull",
    "RealClock",
    "ReplayReport",
    "Runtime",
    "RuntimeClosed",
    "RuntimeConfig",
    "RuntimeFull",
    "Sampling",
    "Session",
    "SessionClosed",
    "SessionStats",
    "SnapshotError",
    "SnapshotInfo",
    "Source",
    "TextEvent",
    "Video",
    "VirtualClock",
    "dumped_sessions",
    "read_header",
    "replay",
}


def sources(folder: str) -> list[Path]:
    return [p for p in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in p.parts]


def test_package_list_is_the_folders() -> None:
    """An editable install hides a missing entry, a wheel drops the folder."""
    found = {f"microturn.{folder}" for folder in FOLDERS}
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(("microturn", *init.parent.relative_to(ROOT).parts)))
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)
    assert SETUPTOOLS["package-dir"] == {f"microturn.{folder}": folder for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_lies_in_a_listed_package(folder: str) -> None:
    """A folder without __init__.py below the top is in no wheel."""
    listed = set(SETUPTOOLS["packages"])
    for path in sources(folder):
        package = ".".join(("microturn", *path.parent.relative_to(ROOT).parts))
        assert package in listed, f"{path.relative_to(ROOT)}: {package} is not a package"


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f != "runtime"])
def test_top_folders_shadow_nobody(folder: str) -> None:
    """With one, `python -m` from the checkout would hide other projects' `kernels`, `profiling`."""
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_installed_package_has_every_file(folder: str) -> None:
    """Compares the checkout with what Python imports: the wheel's files under `make wheel-test`."""
    patterns = SETUPTOOLS["package-data"]["*"]
    packages = {ROOT.joinpath(*name.split(".")[1:]) for name in SETUPTOOLS["packages"]}
    installed = Path(next(iter(importlib.import_module(f"microturn.{folder}").__path__)))
    shipped = [
        path
        for package in packages
        if package.is_relative_to(ROOT / folder)
        for pattern in ("*.py", *patterns)
        for path in package.glob(pattern)
    ]
    assert (ROOT / folder / "py.typed") in shipped
    for path in shipped:
        relative = path.relative_to(ROOT / folder)
        assert (installed / relative).read_bytes() == path.read_bytes(), f"{folder}/{relative}"


@pytest.mark.parametrize("folder", ["kernels", "model", "runtime", "profiling"])
def test_data_files_are_shipped(folder: str) -> None:
    """Every file beside the code is code, shipped data, or the reader's; bench keeps results."""
    patterns = ("*.py", "*.md", *SETUPTOOLS["package-data"]["*"])
    packages = {ROOT.joinpath(*name.split(".")[1:]) for name in SETUPTOOLS["packages"]}
    for path in (ROOT / folder).rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        home = next(p for p in path.parents if p in packages)
        name = str(path.relative_to(home))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), path


@pytest.mark.parametrize("folder", FOLDERS)
def test_type_checkers_see_the_folders(folder: str) -> None:
    link = ROOT / "tests" / "_typecheck" / "microturn" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder


@pytest.mark.parametrize("name", sorted(PROJECT["project"]["scripts"]))
def test_console_scripts_resolve(name: str) -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name=name)
    assert entry.value == PROJECT["project"]["scripts"][name]
    assert callable(entry.load())


def test_public_names_are_these() -> None:
    """A name more or less here is a change of the public API: say so in CHANGELOG.md."""
    import microturn.runtime as runtime

    assert set(runtime.__all__) == PUBLIC | {"__version__"}
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
        assert name in dir(runtime)
    assert runtime.__version__ == metadata.version("microturn") == PROJECT["project"]["version"]
    with pytest.raises(AttributeError):
        _ = runtime.no_such_name  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (ROOT / target.split("#")[0]).exists(), f"{document} links to {target}"


def test_readme_tree_is_the_folders() -> None:
    """Each line of the tree names a path that exists; no top-level folder is missing."""
    text = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"## The code\n.*?```\n(.*?)```", text, re.S)
    stack: list[tuple[int, Path]] = []
    named = set()
    for line in filter(str.strip, tree.splitlines()):
        depth = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        base = stack[-1][1] if stack else ROOT
        for name in names.split():
            assert (base / name).exists(), f"README's tree names {base / name}"
            named.add(base / name)
        stack.append((depth, base / names.split()[0]))
    assert {ROOT / folder for folder in (*FOLDERS, "tests")} <= named


@pytest.mark.realtime
def test_readme_example_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a second of speech goes in; five ticks and the one that drains the codec come out."""
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(example.strip().splitlines()) == 10
    exec(compile(example, "README.md", "exec"), {})
    ticks = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(ticks) >= 5
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))


def test_makefile_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    for document in (*DOCUMENTS, ".ci/run"):
        asked = set(re.findall(r"`?\bmake ([a-z][a-z-]*)`", (ROOT / document).read_text()))
        assert asked <= targets, f"{document} asks for {sorted(asked - targets)}"
