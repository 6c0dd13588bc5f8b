"""Where every kernel is launched from: knows about the interpreter, recording and PDL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

H200_SMS = 132
"""Streaming multiprocessors of the GPU whose numbers plans and predictions assume."""

Grid = tuple[int, ...]


class Launch(NamedTuple):
    """One kernel of an op.

    compiled: Triton's CompiledKernel of a dry launch, else None; given: bytes of the tensors it was
    given or reaches, by their storage; constants: its options; barriers: grid barriers it passes;
    arguments: bytes of the tensors it was given, by the names of its parameters
    """

    name: str
    grid: Grid
    compiled: Any
    given: Mapping[int, int]
    constants: Mapping[str, Any]
    barriers: int
    arguments: Mapping[str, int] = MappingProxyType({})


_recorders: list[list[Launch]] = []


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on CPU tensors."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def launch(
    kernel: Any,
    grid: Grid,
    *args: Any,
    pdl: bool = False,
    barriers: int = 0,
    reached: Iterable[Tensor] = (),
    **options: Any,
) -> None:
    """kernel[grid](*args, **options); a grid with a zero launches nothing.

    pdl      the kernel takes a constexpr PDL, and issues `gdc_wait` where it is true (launches of a
             tick overlap the tail of the one before; the interpreter has no such thing)
    barriers grid barriers it passes: for the record only
    reached  tensors that it finds by addresses kept in a tensor: for the record only
    options  constexprs and num_warps, num_stages, launch_cooperative_grid, ...

    On "meta" tensors (a dry launch, see `kernels.compiled`) it is compiled, not run.
    """
    if 0 in grid:
        return
    if pdl:
        on = not interpreted()
        options |= {"PDL": on, "launch_pdl": on}
    tensors = (a for a in args if isinstance(a, Tensor))
    dry = any(t.is_meta for t in tensors)
    compiled = None
    if dry:
        compiled = kernel.warmup(*args, grid=grid, **options)
    else:
        kernel[grid](*args, **options)
    for recorder in _recorders:
        given = storages((*args, *reached))
        sizes = _arguments(kernel, args)
        recorder.append(Launch(kernel.__name__, grid, compiled, given, options, barriers, sizes))


def storages(args: Iterable[Any]) -> dict[int, int]:
    """Bytes of the distinct tensors among these, those behind descriptors too, by their storage;
    views of one storage count together, as the whole of it at most.
    """
    found = (getattr(a, "base", a) for a in args)
    sizes: dict[int, int] = {}
    for tensor in {id(t): t for t in found if isinstance(t, Tensor)}.values():
        storage = tensor.untyped_storage()
        size = sizes.get(storage._cdata, 0) + tensor.numel() * tensor.element_size()
        sizes[storage._cdata] = min(size, storage.nbytes())
    return sizes


def _arguments(kernel: Any, args: tuple[Any, ...]) -> dict[str, int]:
    """Bytes of each tensor among a kernel's arguments, or behind a descriptor, by its name."""
    named = zip(kernel.arg_names, (getattr(a, "base", a) for a in args), strict=False)
    return {name: a.numel() * a.element_size() for name, a in named if isinstance(a, Tensor)}


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, every launch is appended to the list."""
    launches: list[Launch] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        _recorders.remove(launches)


@cache
def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; those of an H200 where nothing real runs.

    In the interpreter 3, so that persistent loops go round.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return H200_SMS if device.type == "meta" else 3


@cache
def device_name(device: torch.device) -> str:
    """The name under which launch parameters are kept; an H200's where nothing real runs."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).replace(" ", "_")
    return "NVIDIA_H200"


@cache
def zeroed(owner: str, size: int, device: torch.device) -> Tensor:
    """[size] int32 counters of one op, zero at first; kernels leave them zero when they end.

    One buffer an owner and device: two steps of one op may not run at the same time on one device.
    """
    return torch.zeros(size, dtype=torch.int32, device=device)
