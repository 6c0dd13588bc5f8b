"""Installs the kits into peers/site and builds what comes as source, for sm_90.

    python bench/peers/kit/build.py                    wheels, then all of the builds at once
    python bench/peers/kit/build.py --torch FOLDER --python FOLDER
                                                       builds against the headers of another torch
                                                       and Python, into peers/built, to be carried

Needs nvcc and a C++ compiler; no network. Logs go to $OUT, if set, else to peers/log. A build that
fails leaves its log and the others alone; binaries already in peers/built are taken as they are.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("peers").absolute()
SITE, SOURCE, OBJECTS, BUILT = ROOT / "site", ROOT / "source", ROOT / "objects", ROOT / "built"
LOG = Path(os.environ.get("OUT", ROOT / "log"))
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))

HEADS = (32, 64, 96, 128, 192, 256)
TYPES = ("cutlass::half_t", "cutlass::bfloat16_t")
FORWARD = {"run_mha_fwd_": "fwd", "run_mha_fwd_splitkv_dispatch": "fwd_split"}
BACKWARD = "run_mha_bwd_"
KEPT = ("cutlass::bfloat16_t", 128)
"""Type and head width of flash-attn that are built; each takes minutes."""


@dataclass(frozen=True)
class Extension:
    """module: its import name; folder: of the sources, in the unpacked source of `package`."""

    module: str
    package: str
    folder: str
    sources: tuple[str, ...]
    includes: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    packages: tuple[str, ...] = field(default=())

    @property
    def at(self) -> Path:
        (found,) = SOURCE.glob(f"{self.package}-*")
        return found


FLASH = Extension(
    module="flash_attn_2_cuda",
    package="flash_attn",
    folder="csrc/flash_attn",
    sources=(
        "flash_api.cpp",
        "stub.cpp",
        *(
            f"src/flash_{kind}_hdim{KEPT[1]}_bf16{causal}_sm80.cu"
            for kind in FORWARD.values()
            for causal in ("", "_causal")
        ),
    ),
    includes=("csrc/flash_attn", "csrc/flash_attn/src", "csrc/cutlass/include"),
    defines=tuple(
        f"FLASHATTENTION_DISABLE_{what}" for what in ("DROPOUT", "ALIBI", "SOFTCAP", "UNEVEN_K")
    ),
    packages=("flash_attn",),
)
EXTENSIONS = (
    FLASH,
    Extension("megablocks_ops", "megablocks", "csrc", ("ops.cu",), packages=("megablocks",)),
    Extension(
        "grouped_gemm_backend",
        "grouped_gemm",
        "csrc",
        ("ops.cu", "grouped_gemm.cu"),
        includes=("csrc", "third_party/cutlass/include"),
        libraries=("cublas",),
        packages=("grouped_gemm",),
    ),
)
PURE = {"stanford_stk": "stk"}
PATCHES = {("megablocks", "csrc/*.h"): {r",\s*debug_synchronous\)": ")"}}
"""Files of a package, and what in them is replaced: CUDA 13's cub no longer takes that argument."""


def stub() -> str:
    """What flash_api.cpp calls and this build leaves out: it says so when called."""
    lines = [
        "#include <cuda_runtime.h>",
        '#include "flash.h"',
        "#include <cutlass/numeric_types.h>",
        "#include <c10/util/Exception.h>",
        "namespace FLASH_NAMESPACE {",
    ]
    for name in (*FORWARD, BACKWARD):
        params = f"Flash_{'bwd' if name == BACKWARD else 'fwd'}_params &, cudaStream_t"
        lines.append(
            f"template <typename T, int D, bool C> void {name}({params}) {{ "
            f'TORCH_CHECK(false, "left out of this reduced build: heads of ", D); }}'
        )
        lines += [
            f"template void {name}<{kind}, {width}, {causal}>({params});"
            for kind in TYPES
            for width in HEADS
            for causal in ("false", "true")
            if name == BACKWARD or (kind, width) != KEPT
        ]
    return "\n".join([*lines, "}", ""])


def install() -> None:
    """Wheels, repacked wheels and plain modules into peers/site; sources beside it."""
    for folder in (SITE, SOURCE, OBJECTS, BUILT, LOG):
        folder.mkdir(parents=True, exist_ok=True)
    for path in sorted([*ROOT.glob("[ab]/*")]):
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as packed:
                packed.extractall(SITE)
        elif path.name.endswith(".tar.xz"):
            with tarfile.open(path) as packed:
                packed.extractall(SITE, filter="data")
        elif path.name.endswith(".tar.gz"):
            with tarfile.open(path) as packed:
                packed.extractall(SOURCE, filter="data")
        elif path.is_dir():
            shutil.copytree(path, SITE / path.name, dirs_exist_ok=True)
    for package, module in PURE.items():
        for at in SOURCE.glob(f"{package}-*"):
            shutil.copytree(at / module, SITE / module, dirs_exist_ok=True)


def compile_one(extension: Extension, name: str, flags: list[str]) -> tuple[bool, str]:
    source = extension.at / extension.folder / name
    target = OBJECTS / f"{extension.module}.{Path(name).name}.o"
    if target.exists():
        return True, f"{target.name}: there already"
    start = time.monotonic()
    if source.suffix == ".cu":
        command = ["nvcc", "-w", "-O3", "-std=c++17", "-Xcompiler", "-fPIC"]
        command += ["-gencode", "arch=compute_90,code=sm_90", "--use_fast_math"]
        command += ["--expt-relaxed-constexpr", "--expt-extended-lambda"]
        command += [
            f"-U__CUDA_NO_{what}__"
            for what in (
                "HALF_OPERATORS",
                "HALF_CONVERSIONS",
                "HALF2_OPERATORS",
                "BFLOAT16_CONVERSIONS",
            )
        ]
    else:
        command = [os.environ.get("CXX", "g++"), "-w", "-O2", "-std=c++17", "-fPIC"]
    part = target.with_suffix(".part")
    log = LOG / f"{target.name}.log"
    with open(log, "w") as out:
        done = subprocess.run(
            [*command, *flags, "-c", str(source), "-o", str(part)], stdout=out, stderr=out
        )
    if done.returncode == 0:
        part.rename(target)
    return done.returncode == 0, f"{target.name}: rc {done.returncode}, " + (
        f"{time.monotonic() - start:.0f} s, log {log}"
    )


def link(extension: Extension, torch: Path) -> tuple[bool, str]:
    objects = [OBJECTS / f"{extension.module}.{Path(n).name}.o" for n in extension.sources]
    target = BUILT / f"{extension.module}.so"
    command = ["g++", "-shared", "-s", "-o", str(target), *map(str, objects)]
    command += [f"-L{torch / 'lib'}", f"-L{CUDA / 'lib64'}", "-lc10", "-ltorch_cpu"]
    # libtorch_cuda and libc10_cuda are in the process already when an extension is imported.
    command += ["-ltorch_python", "-lcudart", *(f"-l{name}" for name in extension.libraries)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, f"{target.name}: rc {done.returncode} {done.stderr[-2000:]}"


def patch() -> None:
    for (package, files), changes in PATCHES.items():
        for path in SOURCE.glob(f"{package}-*/{files}"):
            text = path.read_text()
            for old, new in changes.items():
                text = re.sub(old, new, text)
            path.write_text(text)


def build(torch: Path, python: Path, jobs: int) -> bool:
    patch()
    (FLASH.at / FLASH.folder / "stub.cpp").write_text(stub())
    wanted = [e for e in EXTENSIONS if not (BUILT / f"{e.module}.so").exists()]
    shared = [torch / "include", torch / "include/torch/csrc/api/include", python, CUDA / "include"]
    work = []
    for extension in wanted:
        own = [extension.at / folder for folder in extension.includes]
        flags = [f"-I{folder}" for folder in (*own, *shared)]
        flags += [f"-D{define}" for define in extension.defines]
        flags += [f"-DTORCH_EXTENSION_NAME={extension.module}"]
        work += [(extension, name, flags) for name in extension.sources]
    fine = True
    with ThreadPoolExecutor(jobs) as pool:
        for ok, text in pool.map(lambda item: compile_one(*item), work):
            print(text, flush=True)
            fine &= ok
    for extension in wanted:
        ok, text = link(extension, torch)
        print(text, flush=True)
        fine &= ok
    return fine


def place() -> None:
    """Binaries and the Python packages around them."""
    for extension in EXTENSIONS:
        binary = BUILT / f"{extension.module}.so"
        if not binary.exists():
            continue
        shutil.copy2(binary, SITE / binary.name)
        for package in extension.packages:
            shutil.copytree(extension.at / package, SITE / package, dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", type=Path, help="folder with torch's include and lib")
    parser.add_argument("--python", type=Path, help="folder with Python.h")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--no-build", action="store_true", help="install only")
    args = parser.parse_args()
    install()
    fine = True
    if not args.no_build:
        torch = args.torch
        if torch is None:
            import torch as found

            torch = Path(found.__file__).parent
        fine = build(torch, args.python or Path(sysconfig.get_path("include")), args.jobs)
    place()
    print(f"in {SITE}: {', '.join(sorted(p.name for p in SITE.glob('*') if 'info' not in p.name))}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
