"""What an engine asks of the machine it runs on: memory, queues of work, and graphs.

`CudaMachine` is a GPU. `InlineMachine` does the same work on a CPU, each thing when it is asked
for, so that an engine made for a GPU can be tested without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from microturn.runtime.errors import EngineLost

Work = Callable[[], None]


class Mark(Protocol):
    """A place in a queue."""

    def wait(self) -> None:
        """Blocks the calling thread until all work before the mark is done. Raises EngineLost when
        the machine is.
        """
        ...

    def ms_since(self, earlier: Mark) -> float:
        """Between the two, once both are passed."""
        ...


class Queue(Protocol):
    """Work done in order, beside the host and beside other queues."""

    def copy(self, to: Tensor, source: Tensor) -> None: ...
    def run(self, work: Work) -> None:
        """work is a graph that this machine captured."""
        ...

    def mark(self) -> Mark: ...
    def after(self, mark: Mark) -> None:
        """What is asked for from now on waits for a mark of another queue."""
        ...


class Machine(Protocol):
    @property
    def device(self) -> torch.device: ...
    def memory(self, nbytes: int) -> Tensor:
        """[nbytes] uint8 on the device, zeros."""
        ...

    def host(self, nbytes: int) -> Tensor:
        """[nbytes] uint8 on the host, zeros; a device copies from and to it beside other work."""
        ...

    def queue(self) -> Queue: ...
    def finish(self) -> None:
        """Blocks until what the calling thread asked of the device, on no queue, is done."""
        ...

    def capture(self, work: Work) -> Work:
        """A graph of `work`, which is called at least once and must not mind. What the graph reads
        and writes is where it was while `work` ran.
        """
        ...


class _Passed:
    """A mark of a queue that does everything at once."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def wait(self) -> None: ...

    def ms_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Passed)
        return 1000 * (self.at - earlier.at)


class _Inline:
    def copy(self, to: Tensor, source: Tensor) -> None:
        to.copy_(source)

    def run(self, work: Work) -> None:
        work()

    def mark(self) -> Mark:
        return _Passed()

    def after(self, mark: Mark) -> None: ...


class InlineMachine:
    """A CPU that does everything when it is asked for; a graph is the work itself."""

    device = torch.device("cpu")

    def memory(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    host = memory

    def queue(self) -> Queue:
        return _Inline()

    def finish(self) -> None: ...

    def capture(self, work: Work) -> Work:
        work()
        return work


class _CudaMark:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def wait(self) -> None:
        try:
            self.event.synchronize()
        except RuntimeError as error:
            raise EngineLost(f"the GPU cannot go on: {error}") from error

    def ms_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _CudaMark)
        return float(earlier.event.elapsed_time(self.event))


class _CudaQueue:
    """A stream. What raises here leaves nothing to fall back on: the driver's errors stay."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, to: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)

    def run(self, work: Work) -> None:
        try:
            with torch.cuda.stream(self.stream):
                work()
        except RuntimeError as error:
            raise EngineLost(f"the GPU cannot go on: {error}") from error

    def mark(self) -> Mark:
        return _CudaMark(self.stream)

    def after(self, mark: Mark) -> None:
        assert isinstance(mark, _CudaMark)
        self.stream.wait_event(mark.event)


class CudaMachine:
    """One NVIDIA GPU. Graphs share one pool of memory, since no two run at a time."""

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        self._pool = torch.cuda.graph_pool_handle()
        self._capturing = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def memory(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8, device=self.device)

    def host(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)

    def queue(self) -> Queue:
        return _CudaQueue(self.device)

    def finish(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    def capture(self, work: Work) -> Work:
        """The first call compiles kernels and makes what lives longer than a tick, outside the
        graph's memory; the second is captured.
        """
        stream = self._capturing
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            work()
        stream.synchronize()
        return graph.replay
