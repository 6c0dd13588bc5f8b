"""Times of one call: graph replays between events on a GPU, perf_counter on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

L2_MULTIPLE = 3
"""What a rotation moves between two uses of the same memory, in sizes of the L2."""
MOST_COPIES = 64
ALWAYS_COLD = 1_000_000_000
"""Bytes of a call that leave nothing of themselves in any L2."""
MEMORY_SHARE = 0.4
"""Of what is free, for all copies of a call's inputs."""


@dataclass(frozen=True)
class Times:
    """us of one call. how: "graph", "eager" or "host"; cold: "rotated" (other memory every
    time), "flushed" (something else read in between) or "warm"
    """

    p20: float
    p50: float
    p80: float
    repeats: int
    how: str
    cold: str

    @classmethod
    def of(cls, us: Sequence[float], how: str, cold: str) -> Times:
        low, mid, high = (round(float(v), 3) for v in np.percentile(us, (20, 50, 80)))
        return cls(low, mid, high, len(us), how, cold)


class Timer(Protocol):
    """Calls do the same work on different memory and are used in turn."""

    @property
    def device(self) -> torch.device: ...
    def copies(self, call_bytes: int, tensor_bytes: int) -> int:
        """How many copies of the inputs to make: a call moves `call_bytes` of memory that is
        `tensor_bytes` large.
        """
        ...

    def time(self, calls: Sequence[Callable[[], Any]], call_bytes: int = ALWAYS_COLD) -> Times: ...
    def overhead(self) -> dict[str, float]:
        """us that the method itself adds, for meta; "events_us" is what two events cost with
        nothing between.
        """
        ...


class CpuTimer:
    """Few repeats on a warm cache: for order of magnitude."""

    def __init__(self, seconds: float = 0.05, least: int = 5, most: int = 50) -> None:
        self.device = torch.device("cpu")
        self.seconds, self.least, self.most = seconds, least, most

    def copies(self, call_bytes: int, tensor_bytes: int) -> int:
        return 1

    def time(self, calls: Sequence[Callable[[], Any]], call_bytes: int = ALWAYS_COLD) -> Times:
        us: list[float] = []
        calls[0]()
        end = time.perf_counter() + self.seconds
        while len(us) < self.least or (len(us) < self.most and time.perf_counter() < end):
            call = calls[len(us) % len(calls)]
            start = time.perf_counter()
            call()
            us.append(1e6 * (time.perf_counter() - start))
        return Times.of(us, "host", "warm")

    def overhead(self) -> dict[str, float]:
        return {}


class GpuTimer:
    """Isolated replays of CUDA graphs.

    Every call is a graph of its own; between the end of one replay and the start of the next lies
    a kernel that only waits, so that neither the host's launch nor a programmatic edge reaches
    from one into the other. What the two events and an empty kernel cost is in `overhead`, and is
    not taken off.
    """

    SPIN_CYCLES = 60_000
    """About 35 us: longer than the host takes to queue two events and a graph."""

    def __init__(self, device: torch.device, seconds: float = 0.3, least: int = 100) -> None:
        self.device = device
        self.seconds, self.least, self.most = seconds, least, 1000
        self.l2 = int(torch.cuda.get_device_properties(device).L2_cache_size)
        self._flush = torch.zeros(L2_MULTIPLE * self.l2 // 4, dtype=torch.int32, device=device)
        self._pool = torch.cuda.graph_pool_handle()
        # One for all captures: libraries keep a workspace for every stream they see.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copies(self, call_bytes: int, tensor_bytes: int) -> int:
        if call_bytes >= ALWAYS_COLD:
            return 1
        wanted = max(2, -(-L2_MULTIPLE * self.l2 // max(1, call_bytes)))
        free = torch.cuda.mem_get_info(self.device)[0]
        fits = int(MEMORY_SHARE * free) // max(1, tensor_bytes)
        return max(1, min(wanted, fits, MOST_COPIES))

    def time(self, calls: Sequence[Callable[[], Any]], call_bytes: int = ALWAYS_COLD) -> Times:
        rotated = call_bytes >= ALWAYS_COLD or len(calls) * call_bytes >= L2_MULTIPLE * self.l2
        cold = "rotated" if rotated else "flushed"
        how = "graph"
        try:
            captured = [self._capture(call) for call in calls]
            replays: list[Callable[[], Any]] = [graph.replay for graph, _ in captured]
        except Exception as error:  # whatever a library does that a graph cannot hold
            torch.cuda.synchronize(self.device)
            how, replays = f"eager ({type(error).__name__} in capture)", list(calls)
        trial = self._replay(replays, 6, rotated)
        us = max(1.0, float(np.median(trial)))
        # A flush reads L2_MULTIPLE L2s, in about 60 us.
        each = 1e-6 * (us + 40 + (0 if rotated else 80))
        slow = us > 10_000
        repeats = int(min(self.most, max(20 if slow else self.least, self.seconds / each)))
        return Times.of(self._replay(replays, repeats, rotated), how, cold)

    def overhead(self) -> dict[str, float]:
        one = torch.zeros(1, device=self.device)
        kernel = self._capture(lambda: one.add_(1))[0]
        return {
            "events_us": round(float(np.median(self._replay([lambda: None], 100, True))), 3),
            "small_kernel_graph_us": round(
                float(np.median(self._replay([kernel.replay], 100, True))), 3
            ),
        }

    def _replay(
        self, replays: Sequence[Callable[[], Any]], repeats: int, rotated: bool
    ) -> list[float]:
        def event() -> torch.cuda.Event:
            return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

        starts, ends = ([event() for _ in range(repeats)] for _ in range(2))
        torch.cuda.synchronize(self.device)
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if not rotated:
                torch.sum(self._flush)  # reads: leaves nothing to write back
            torch.cuda._sleep(self.SPIN_CYCLES)  # type: ignore[no-untyped-call]
            start.record()
            replays[index % len(replays)]()
            end.record()
        torch.cuda.synchronize(self.device)
        return [1000 * s.elapsed_time(e) for s, e in zip(starts, ends, strict=True)]

    def _capture(self, call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """The graph of a call, and what it returned, which must stay alive."""
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            kept = call()
        return graph, kept


def timer(device: torch.device, seconds: float | None = None) -> Timer:
    """The way to time on a device."""
    if device.type == "cuda":
        return GpuTimer(device, 0.3 if seconds is None else seconds)
    return CpuTimer(0.05 if seconds is None else seconds)
