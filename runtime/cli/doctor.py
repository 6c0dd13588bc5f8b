"""`microturn doctor`: what this machine can and cannot do, and why."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microturn.runtime import machine
from microturn.runtime.cli.report import spread

State = Literal["ok", "warn", "fail"]
GIB = 2**30
PRESET = "interaction-tiny"
ESTIMATE_TICKS = 12


@dataclass(frozen=True)
class Check:
    """One line: fail means that nothing can run here, warn that something cannot."""

    name: str
    state: State
    says: str


def examine() -> list[Check]:
    """Every check, in order; takes about three seconds. A check that breaks is itself a finding."""
    checks: list[Callable[[], Check]] = [
        python,
        torch_build,
        cores,
        gpu,
        triton,
        memory,
        disk,
        sound,
        extras,
        timing,
        tick,
    ]
    found = []
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            found.append(check())
        except Exception as error:  # whatever broke is what the caller wants to read
            found.append(Check(name, "fail", f"{type(error).__name__}: {error}"))
    return found


def python() -> Check:
    says = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < (3, 11):  # noqa: UP036 (an installer may have been overruled)
        return Check("python", "fail", f"{says}; 3.11 or newer is needed")
    if platform.system() != "Linux":
        return Check("python", "warn", f"{says}; only Linux is tested")
    return Check("python", "ok", says)


def torch_build() -> Check:
    import torch

    cuda = torch.version.cuda
    says = f"{torch.__version__}, built {f'for CUDA {cuda}' if cuda else 'without CUDA'}"
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 11):
        return Check("torch", "fail", f"{says}; 2.11 or newer is needed")
    return Check("torch", "ok", says)


def cores() -> Check:
    import torch

    usable, present = machine.usable_cores(), os.cpu_count() or 1
    says = f"{machine.cpu_model()}, {usable} of {present} cores usable"
    says += f", {torch.get_num_threads()} torch threads by default"
    if usable < 2:
        return Check("cores", "warn", f"{says}; real time wants 2, one for the clock's thread")
    return Check("cores", "ok", says)


def gpu() -> Check:
    found = machine.gpus()
    if not found:
        names = _driver_devices()
        if names:
            return Check(
                "gpu",
                "warn",
                f"{', '.join(names)} is here but this torch cannot use it; install a CUDA build",
            )
        return Check("gpu", "warn", "none: interaction-tiny runs on the CPU, larger presets do not")
    says = "; ".join(
        f"{g.name}, compute capability {g.capability[0]}.{g.capability[1]}, "
        f"{g.memory_bytes / GIB:.0f} GiB"
        for g in found
    )
    if all(g.capability < (8, 0) for g in found):
        return Check("gpu", "warn", f"{says}; compute capability 8.0 or later is needed")
    if not (Path(__file__).parents[2] / "kernels/linear/kernel.py").is_file():
        return Check("gpu", "warn", f"{says}; this version has the CPU engine only")
    return Check("gpu", "ok", says)


def _driver_devices() -> list[str]:
    """Names of the GPUs the driver knows, whether or not torch does."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def triton() -> Check:
    version = machine.version("triton")
    if version is None:
        return Check("triton", "warn", "not installed: the CPU runs without it, a GPU cannot")
    return Check("triton", "ok", f"{version}, used on a GPU only")


def memory() -> Check:
    total, available = machine.memory_bytes()
    says = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if available < 2 * GIB:
        return Check("memory", "warn", f"{says}; {PRESET} with torch wants about 2 GiB")
    return Check("memory", "ok", says)


def disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    says = f"{free / GIB:.1f} GiB free in the current folder"
    if free < GIB:
        return Check("disk", "warn", f"{says}; replies and dumps want some room")
    return Check("disk", "ok", says)


def sound() -> Check:
    try:
        devices = importlib.import_module("sounddevice").query_devices()
    except ModuleNotFoundError:
        return Check("audio", "warn", "`microturn talk` needs pip install 'microturn[talk]'")
    except OSError as error:
        return Check("audio", "warn", f"`microturn talk` needs libportaudio2 ({error})")
    inputs = sum(device["max_input_channels"] > 0 for device in devices)
    outputs = sum(device["max_output_channels"] > 0 for device in devices)
    says = f"{inputs} input and {outputs} output devices"
    if not inputs or not outputs:
        return Check("audio", "warn", f"{says}: `microturn talk` needs one of each")
    return Check("audio", "ok", says)


def extras() -> Check:
    wanted = {"talk": ("sounddevice",), "oracles": ("transformers", "scipy", "einops", "moshi")}
    parts = []
    for extra, modules in wanted.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        parts.append(f"[{extra}] " + (f"lacks {', '.join(missing)}" if missing else "installed"))
    return Check("extras", "ok", "; ".join(parts))


def timing() -> Check:
    late = wake_lateness_ms(period_s=0.01, ticks=100)
    numbers = spread(late, "late", (50, 99, 100))
    says = (
        f"a 10 ms clock woke late by {numbers['late_p50']:.2f} ms (p50), "
        f"{numbers['late_p99']:.2f} (p99), {numbers['late_p100']:.2f} (max)"
    )
    if numbers["late_p99"] > 10:
        return Check("timing", "warn", f"{says}: this machine is busy or throttled")
    return Check("timing", "ok", says)


def wake_lateness_ms(period_s: float, ticks: int) -> list[float]:
    """How late sleeping until t0 + k * period ends, ms, for each of `ticks`."""
    start = time.perf_counter()
    late = []
    for k in range(1, ticks + 1):
        due = start + k * period_s
        time.sleep(max(0.0, due - time.perf_counter()))
        late.append((time.perf_counter() - due) * 1e3)
    return late


def tick() -> Check:
    from microturn.runtime import FastClock, Runtime

    with Runtime(preset=PRESET, max_sessions=1, clock=FastClock()) as runtime:
        runtime.open()
        shape = runtime.family.shape
        for _ in range(ESTIMATE_TICKS):
            runtime.tick()
        step = float(runtime.summary()["step_ms"]["p50"])
    says = f"{PRESET} takes {step:.0f} ms of its {shape.tick_ms} ms tick (one session)"
    if step > shape.tick_ms:
        return Check("tick", "warn", f"{says}: it cannot keep up here; use --fast")
    if step > 0.8 * shape.tick_ms:
        return Check("tick", "warn", f"{says}: deadlines will be missed")
    return Check("tick", "ok", says)


def verdict(checks: Iterable[Check]) -> str:
    """One sentence for the end of the list."""
    checks = list(checks)
    if any(check.state == "fail" for check in checks):
        return "microturn cannot run here until the failures above are fixed."
    if any(check.state == "warn" for check in checks):
        return "microturn runs here; the warnings say what does not."
    return "microturn runs here, all of it."
