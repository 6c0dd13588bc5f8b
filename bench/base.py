"""The same cases on another revision: its kernels, this tree's bench, rounds in turn."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from microturn.bench import rows
from microturn.bench.isolated import Worker, WorkerFailed
from microturn.bench.rows import OURS, Row
from microturn.bench.subjects import Item

ROUNDS = 3
BASE = "base"
TREES = ("kernels", "model", "runtime")


class NoSuchRevision(ValueError):
    """The revision cannot be checked out here."""


def repository() -> Path:
    """The checkout this module stands in. Raises NoSuchRevision."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        raise NoSuchRevision(f"--base wants a git checkout; {root} is none")
    return root


@contextmanager
def tree(revision: str) -> Iterator[Path]:
    """A throwaway worktree of a revision. Raises NoSuchRevision."""
    root = repository()
    with tempfile.TemporaryDirectory(prefix="microturn-base-") as folder:
        made = Path(folder) / "tree"
        commit = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        if commit is None:
            raise NoSuchRevision(f"--base: git knows no revision {revision!r}")
        if _git(root, "worktree", "add", "--detach", str(made), commit) is None:
            raise NoSuchRevision(f"--base: git could not check out {revision!r}")
        try:
            yield made
        finally:
            _git(root, "worktree", "remove", "--force", str(made))


@contextmanager
def workers(
    revision: str, device: str, *, seconds: float | None = None, seed: int = 0
) -> Iterator[tuple[Worker, Worker]]:
    """(this tree's, the base's). Raises NoSuchRevision, WorkerFailed."""
    with tree(revision) as made:
        links = made.parent / "import" / "microturn"
        links.mkdir(parents=True)
        for name in TREES:
            (links / name).symlink_to(made / name)
        # Both sides are measured by the same code: this tree's.
        (links / "bench").symlink_to(repository() / "bench")
        with Worker(device, seconds=seconds, seed=seed) as ours:
            other = Worker(
                device,
                seconds=seconds,
                seed=seed,
                root=links.parent,
                kernels=made,
                ceilings=ours.ceilings,
            )
            with other:
                yield ours, other


def measure(ours: Worker, other: Worker, item: Item) -> list[Row]:
    """Rows of microturn, with base_us and speedup, and of the base; medians over rounds in
    turn.
    """
    now: list[Row] = []
    then: list[Row] = []
    for _ in range(ROUNDS):
        now += ours.measure(item, [OURS])
        then += other.measure(item, [OURS])
        if now[-1]["us_p50"] is None:
            break  # wrong, or cannot run: a second time is no different
    row, base = _middle(now), _middle(then)
    base["provider"] = BASE
    base["ok"] = None if base["us_p50"] is None else base["ok"]
    for key in [key for key in base if key.startswith(("bar_", "meets_"))]:
        del base[key]
    if row["us_p50"] and base["us_p50"]:
        row["base_us"] = base["us_p50"]
        row["speedup"] = round(base["us_p50"] / row["us_p50"], 4)
    return [row, base]


def _middle(found: Sequence[Row]) -> Row:
    """One row with the medians of the rounds; the first that has no time, if any has none."""
    for row in found:
        if row["us_p50"] is None:
            return dict(row)
    row = dict(found[-1])
    for key in ("us_p20", "us_p50", "us_p80"):
        row[key] = round(median(r[key] for r in found), 3)
    row["repeats"] = sum(r["repeats"] for r in found)
    row |= rows.fractions(row, row["us_p50"])
    row.pop("meets_bar_net", None)
    if "meets_bar" in row:
        row["meets_bar"] = rows.judge(row)
    return row


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


__all__ = ["BASE", "NoSuchRevision", "WorkerFailed", "measure", "tree", "workers"]
