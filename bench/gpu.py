"""Everything that needs a GPU, in one command that fits ten minutes: `make gpu`.

    PYTHONPATH=tests/_typecheck python -P -m microturn.bench.gpu --out out --parts "check bench"

Runs from the source tree, with torch, Triton and numpy and nothing else of ours installed. Parts:

warm   every kernel of the bench compiled side by side, so that later parts do not wait for it
check  the tests of the kernels, on the GPU
bench  microturn in every bench case: ops.json
tick   the engine whole, small and at the published sizes: tick.json (see bench.gpu_tick)
peers  the same with every peer beside it
profile  a tick's graph taken apart by CUPTI: graph.json; wrong where its kernels and gaps are not
       within 3 % of the graph's time (see profiling.gpu)

Each part has a time box; what a box cuts off says so in its row. The document is written after
every case, so what was measured is kept whatever happens. Exit code 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PARTS = ("warm", "check", "bench", "peers", "tick", "profile")
USUAL = PARTS[:4]
SECONDS = {"warm": 110.0, "check": 170.0, "profile": 300.0}
"""The most a part takes; the bench takes what is left."""
TOTAL_SECONDS = 560.0
LEAST_SECONDS = 30.0
CHECKED = "tests/kernels"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts in order; 1 when anything is wrong."""
    asked = _arguments(arguments)
    begin = time.monotonic()
    asked.out.mkdir(parents=True, exist_ok=True)
    parts = asked.parts.replace(",", " ").split()
    if unknown := [part for part in parts if part not in PARTS]:
        print(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    ends: list[tuple[str, bool, str]] = []
    if "warm" in parts:
        ends.append(("warm", *_warm(asked)))
    if "check" in parts:
        ends.append(("check", *_check(asked)))
    if "bench" in parts or "peers" in parts:
        left = max(LEAST_SECONDS, asked.seconds - (time.monotonic() - begin))
        ends.append(("bench", *_bench(asked, "peers" in parts, left)))
    if "tick" in parts:
        from microturn.bench import gpu_tick

        left = max(LEAST_SECONDS, asked.seconds - (time.monotonic() - begin))
        ends.append(("tick", *gpu_tick.run(asked, left)))
    if "profile" in parts:
        ends.append(("profile", *_profile(asked)))
    print()
    for part, good, says in ends:
        print(f"{part:<6} {'ok    ' if good else 'FAILED'}  {says}")
    print(f"{time.monotonic() - begin:.0f} s, results in {asked.out}/")
    return int(not all(good for _, good, _ in ends))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m microturn.bench.gpu")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--parts", default=" ".join(USUAL), help="of: " + ", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for everything")
    parser.add_argument("--op", action="append", default=[], help="only this op; repeat")
    parser.add_argument("--dtype", action="append", default=[], help="only this dtype; repeat")
    parser.add_argument("--device", default="cuda", help="cpu: the small shapes, as a rehearsal")
    from microturn.bench import gpu_tick

    gpu_tick.arguments(parser)
    return parser.parse_args(given)


def _warm(asked: argparse.Namespace) -> tuple[bool, str]:
    """Compiles each op in a process of its own: Triton keeps the binaries on disk."""
    from microturn.bench.subjects import subjects

    end = time.monotonic() + SECONDS["warm"]
    names = [s.name for s in subjects().values() if s.bench_cases]
    names = [name for name in names if not asked.op or name in asked.op]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", _COMPILE]
    running = {
        name: subprocess.Popen(
            [*command, name], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for name in names
    }
    late, bad = [], []
    for name, process in running.items():
        try:
            _, words = process.communicate(timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            late.append(name)
            continue
        if process.returncode:
            bad.append(f"{name}: {words.decode(errors='replace').strip().splitlines()[-1][:200]}")
    says = f"{len(names) - len(late) - len(bad)} of {len(names)} ops compiled"
    if late:
        says += f"; out of time: {', '.join(late)}"
    return not bad, "; ".join([says, *bad])


_COMPILE = """
import sys
from microturn.bench.subjects import case_of, get, select
from microturn.kernels.gate import launches_of
for item in select([sys.argv[1]]):
    launches_of(get(item.op), case_of(get(item.op), item.case), item.dtype)
"""


def _check(asked: argparse.Namespace) -> tuple[bool, str]:
    """The kernels' tests, on as many processes as there are cores where pytest can do that."""
    root = Path(__file__).resolve().parents[1]
    if not (root / CHECKED).is_dir():
        return False, f"{CHECKED} is not here: run from the source tree"
    log = asked.out / "check.log"
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", "--maxfail=30", "-r", "fE", "--tb=short"]
    if find_spec("xdist") is not None:
        command += ["-n", str(max(2, min(12, (os.cpu_count() or 2) - 2)))]
    command += ["-k", " or ".join(asked.op)] if asked.op else []
    environment = dict(os.environ)
    if asked.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, CHECKED],
            cwd=root,
            env=_absolute(environment, root),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=SECONDS["check"])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            process.wait()
            code = None
    lines = log.read_text(errors="replace").splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    for line in failures[:20]:
        print(line[:200])
    if code is None:
        return False, f"not done after {SECONDS['check']:.0f} s, see {log}"
    last = next((line for line in reversed(lines) if re.search(r"\d+ \w+ in ", line)), "")
    return code == 0, last.strip("= ") or f"exit code {code}, see {log}"


def _profile(asked: argparse.Namespace) -> tuple[bool, str]:
    """In a process of its own: bench does not import profiling."""
    command = [sys.executable, "-P", "-m", "microturn.profiling.gpu", "--out", str(asked.out)]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS["profile"], check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"not done after {SECONDS['profile']:.0f} s"
    lines = (ran.stdout + ran.stderr).strip().splitlines() or ["said nothing"]
    for line in lines[:-1]:
        print(line[:200])
    return ran.returncode == 0, lines[-1][:300]


def _absolute(environment: dict[str, str], root: Path) -> dict[str, str]:
    """PYTHONPATH that still holds from another folder."""
    given = environment.get("PYTHONPATH")
    if given:
        paths = [str(Path(path).absolute()) for path in given.split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _bench(asked: argparse.Namespace, peers: bool, seconds: float) -> tuple[bool, str]:
    """Every case, those with a bar first."""
    from microturn.bench import ops, rows, run, schema, tables
    from microturn.bench.providers.every import names
    from microturn.bench.subjects import case_of, get, select

    items = sorted(
        select(asked.op, (), asked.dtype, small=asked.device == "cpu"),
        key=lambda item: getattr(case_of(get(item.op), item.case), "bar", None) is None,
    )
    found: list[dict[str, Any]] = []
    path = asked.out / "ops.json"
    with run.measurer(asked.device) as measurer:

        def keep(item: Any, new: Sequence[dict[str, Any]]) -> None:
            found.extend(new)
            schema.write(path, run.document(measurer, asked.device, found))
            times = ", ".join(f"{r['provider']} {r['us_p50']} us" for r in new)
            print(f"  {' '.join(item)}: {times}", file=sys.stderr, flush=True)

        wanted = names() if peers else [rows.OURS]
        run.run(measurer, items, wanted, box_seconds=seconds, watch=keep)
        print(f"ceilings {measurer.ceilings}, overhead {measurer.overhead}")
    tables.ops(found)
    if find_spec("matplotlib") is not None:
        from microturn.bench import report

        report.draw([path])
    wrong = ops.failed(found)
    ours = [row for row in found if row["provider"] == rows.OURS]
    timed = [row for row in ours if row["us_p50"] is not None]
    met = [row for row in timed if row.get("meets_bar")]
    missed = [row for row in timed if row.get("meets_bar") is False]
    says = f"{len(timed)} of {len(ours)} cases timed, {len(wrong)} wrong; "
    says += f"bars: {len(met)} met, {len(missed)} missed"
    return not wrong, says


if __name__ == "__main__":
    sys.exit(main())
