"""Downloads the peers and packs them into kits of at most 64 MiB; run it where there is a network.

    python bench/peers/kit/fetch.py            wheels and sources, then kits
    python bench/peers/kit/fetch.py --list     what is there

Everything lands in peers/, which git ignores: peers/download (from the package index, by name),
peers/a and peers/b (the kits). Standard library and pip only.
"""

from __future__ import annotations

import argparse
import ast
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path("peers")
DOWNLOAD = ROOT / "download"
MOST = 64 << 20

PYTHON = "3.12"
GLIBCS = ("2_17", "2_24", "2_27", "2_28", "2_31", "2_34", "2_35")
WHEELS = (
    "flashinfer-python==0.6.1",
    "apache-tvm-ffi==0.1.9",
    "nvidia-cudnn-frontend==1.32.0",
    "sgl-deep-gemm==0.1.2",
    "liger-kernel==0.8.5",
    "tabulate==0.10.0",
    "moshi==0.2.13",
    "einops==0.8.2",
    "tokenspeed-fa3==3.0.0.post20260408",
)
SOURCES = (
    "flash-attn==2.8.3.post2",
    "megablocks==0.10.0",
    "grouped_gemm==0.3.0",
    "stanford-stk==0.7.1",
)
FA3 = "tokenspeed_fa3"
SGLANG, VLLM = "sglang==0.5.9", "vllm==0.19.0"

# A torch that is enough for a setup.py to say its name: nothing is built here.
STUB = {
    "torch/__init__.py": '__version__ = "2.11.0"\nfrom torch import cuda, version\n',
    "torch/version.py": 'cuda, hip = "13.0", None\n',
    "torch/cuda.py": "def get_device_capability(*a):\n    return 9, 0\n",
    "torch/utils/__init__.py": "",
    "torch/utils/cpp_extension.py": (
        "from setuptools import Extension\n"
        "from setuptools.command.build_ext import build_ext as BuildExtension\n"
        "CUDA_HOME = None\n"
        "def CUDAExtension(name, sources, **_):\n    return Extension(name, sources)\n"
        "CppExtension = CUDAExtension\n"
    ),
}

VLLM_FOLDER = "vllm/model_executor/layers/fused_moe"
VLLM_NAMES = (
    "write_zeros_to_output",
    "fused_moe_kernel",
    "invoke_fused_moe_triton_kernel",
    "get_config_file_name",
    "get_moe_configs",
    "get_default_config",
    "try_get_optimal_moe_config",
)
SGLANG_FOLDER = "sglang/srt/layers/moe/fused_moe_triton"
SGLANG_NAMES = (
    "support_tensor_descriptor",
    "should_enable_swap_ab",
    "write_zeros_to_output",
    "fused_moe_kernel",
    "invoke_fused_moe_kernel",
    "tanh",
    "_apply_activation",
    "act_and_mul_kernel",
    "act_and_mul_triton",
    "_moe_sum_reduce_kernel",
    "moe_sum_reduce_triton",
    "get_config_file_name",
    "get_moe_configs",
    "get_default_config",
    "try_get_optimal_moe_config",
)
HEADER = '''"""Cut by bench/peers/kit/fetch.py out of {source} (Apache-2.0); never committed."""
from __future__ import annotations

import functools
import json
import logging
import os
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Tuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

logger = logging.getLogger(__name__)
logger.info_once = logger.warning_once = lambda *a, **k: None
envs = SimpleNamespace(VLLM_BATCH_INVARIANT=False, VLLM_TUNED_CONFIG_FOLDER=None)
current_platform = SimpleNamespace(
    is_rocm=lambda: False, get_device_name=lambda: torch.cuda.get_device_name()
)
_is_hip, _is_cuda, padding_size, _support_tensor_descriptor = False, True, 0, True


def get_device_name():
    return torch.cuda.get_device_name()


def get_config():
    return None


def get_global_server_args():
    return SimpleNamespace(enable_deterministic_inference=False)


def is_batch_invariant_mode_enabled():
    return False


def is_sm90_supported():
    return torch.cuda.get_device_capability()[0] == 9


def dtype_of(dtype):
    return {{torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}}.get(dtype, tl.float32)


'''


def pip(*args: str, env: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    subprocess.run(
        [*command, "--no-deps", "-d", *args], check=True, env={**os.environ, **(env or {})}
    )


def wheel(name: str, folder: Path) -> None:
    platforms = [f"manylinux_{glibc}_x86_64" for glibc in GLIBCS] + ["manylinux2014_x86_64"]
    tags = [part for p in platforms for part in ("--platform", p)]
    abis = [part for a in ("cp312", "abi3", "none") for part in ("--abi", a)]
    binary = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    pip(str(folder), *binary, *abis, *tags, name)


def source(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as stub:
        for file, text in STUB.items():
            path = Path(stub, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        env = {"PYTHONPATH": stub, "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
        pip(str(folder), "--no-build-isolation", "--no-binary", ":all:", name, env=env)


def have(name: str) -> list[Path]:
    stem, _, version = name.partition("==")
    return sorted(DOWNLOAD.glob(f"{stem.replace('-', '_')}-{version}[-.]*"))


def cut(files: list[Path], names: tuple[str, ...], of: str, imports: dict[str, str]) -> str:
    """These definitions of these files, in their order, as one module."""
    parts = [HEADER.format(source=of)]
    found: set[str] = set()
    for file in files:
        text = file.read_text()
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name in names and node.name not in found:
                found.add(node.name)
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                parts.append("\n".join(lines[first - 1 : node.end_lineno]) + "\n\n\n")
    if lost := set(names) - found:
        raise SystemExit(f"{of} has no {', '.join(sorted(lost))}: its layout has changed")
    text = "".join(parts)
    for line, instead in imports.items():
        if line not in text:
            raise SystemExit(f"{of} has no line {line!r}: its layout has changed")
        text = text.replace(line, instead)
    return text


def triton_module(name: str, folder: str, files: tuple[str, ...], names: tuple[str, ...]) -> None:
    """The whole wheel is downloaded, a few files of it are kept."""
    package = name.partition("==")[0]
    target = ROOT / "a" / f"{package}_fused_moe"
    if target.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
        wheel(name, Path(temporary))
        (path,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(path) as packed:
            wanted = [n for n in packed.namelist() if n.startswith(folder + "/")]
            packed.extractall(temporary, wanted)
        path.unlink()
        at = Path(temporary, folder)
        imports = {
            "vllm": {"    from vllm.model_executor.layers.fused_moe import get_config\n": ""},
            "sglang": {"    from sglang.srt.layers.moe.fused_moe_triton import get_config\n": ""},
        }
        text = cut([at / f for f in files], names, name, imports[package])
        target.mkdir(parents=True)
        (target / "__init__.py").write_text(text)
        shutil.copytree(at / "configs", target / "configs")


def repacked(path: Path, target: Path) -> None:
    """A wheel as tar.xz, about half its size."""
    if target.exists():
        return
    with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
        with zipfile.ZipFile(path) as packed:
            packed.extractall(temporary)
        part = target.with_suffix(".part")
        with tarfile.open(part, "w") as tar:
            for item in sorted(Path(temporary).iterdir()):
                tar.add(item, item.name)
    print(f"packing {target.name}: minutes on few cores", flush=True)
    if shutil.which("xz"):
        subprocess.run(["xz", "-6", "-T0", "--suffix=.xz", str(part)], check=True)
        part.with_name(part.name + ".xz").rename(target)
    else:
        with open(part, "rb") as plain, lzma.open(target, "wb", preset=6) as packed_again:
            shutil.copyfileobj(plain, packed_again)
        part.unlink()


def pack() -> None:
    """a: wheels and the Triton modules; b: FA3 and the sources that are built there."""
    a, b = ROOT / "a", ROOT / "b"
    for folder in (a, b):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (*WHEELS, *SOURCES):
        (path,) = have(name)
        if path.name.startswith(FA3):
            repacked(path, b / f"{FA3}.tar.xz")
        else:
            shutil.copy2(path, (a if name in WHEELS else b) / path.name)
    files = ("fused_moe_triton_kernels.py", "fused_moe_triton_config.py")
    triton_module(VLLM, VLLM_FOLDER, ("fused_moe.py",), VLLM_NAMES)
    triton_module(SGLANG, SGLANG_FOLDER, files, SGLANG_NAMES)


def show() -> None:
    total = 0
    for kit in ("a", "b", "built"):
        files = [p for p in (ROOT / kit).rglob("*") if p.is_file()]
        size = sum(p.stat().st_size for p in files)
        total += size
        print(f"peers/{kit}: {size / 2**20:.1f} MiB")
        for path in sorted((ROOT / kit).glob("*")):
            own = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
            print(f"  {sum(p.stat().st_size for p in own) / 2**20:6.2f}  {path.name}")
    print(f"all: {total / 2**20:.1f} MiB of {MOST >> 20}")
    if total > MOST:
        raise SystemExit("more than one call carries: name one kit after the other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only show the kits")
    if not parser.parse_args().list:
        DOWNLOAD.mkdir(parents=True, exist_ok=True)
        for names, get in ((WHEELS, wheel), (SOURCES, source)):
            for name in names:
                if not have(name):
                    print(f"downloading {name}", flush=True)
                    get(name, DOWNLOAD)
        pack()
    show()


if __name__ == "__main__":
    main()
