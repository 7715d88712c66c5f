"""The stream of a GPU lane: the only calls of CUDA in the service, but for loading a model."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from app.engine.gpu.graphs import Graph, Transfer

_WARM_UP_RUNS = 3  # libraries choose algorithms and take workspaces, which a capture must not

_capturing = threading.Lock()
"""One capture at a time: it is short, and what a capture shares with others need not be known."""


class CudaStream:
    """A stream of its own for each lane, so that one batch's copies overlap another's compute.

    Nothing here waits for the whole device: that would end a capture that is under way on another
    lane, whatever its error mode. See "CUDA Graphs" in the CUDA programming guide and in PyTorch's
    notes on CUDA semantics.
    """

    def __init__(self, device: torch.device) -> None:
        """Make a stream on `device`; from then on, one thread uses it."""
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Blocking: a thread that spins would take a core from the event loop.
        self._marks = [
            torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
            for _ in range(4)
        ]

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Make the stream the current one of this thread."""
        with torch.cuda.stream(self._stream), torch.inference_mode():
            yield

    def host_bytes(self, size: int) -> Tensor:
        """Return page-locked memory, uint8 `[size]`: what a copy needs in order not to wait."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def device_bytes(self, size: int) -> Tensor:
        """Return memory of the device, uint8 `[size]`."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def pool(self) -> object:
        """Return a pool for graphs of one stream, which are never replayed at the same time."""
        return torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], Tensor], pool: object) -> Graph:
        """Return `work` as a CUDA graph; its errors are this thread's alone (`thread_local`).

        Not by `torch.cuda.graph`, which waits for the whole device and collects garbage first.
        """
        with _capturing, _no_collection():
            for _ in range(_WARM_UP_RUNS):
                work()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # type: ignore[arg-type]
            try:
                output = work()
            except BaseException:
                with suppress(RuntimeError):  # the capture that failed says so once more
                    graph.capture_end()
                raise
            graph.capture_end()
        return Graph(graph.replay, output)

    def pass_through(self, way: Transfer) -> tuple[float, float]:
        """Copy in, replay, copy out, and wait; return how long (s) the two copies took."""
        began, copied_in, computed, copied_out = self._marks
        began.record(self._stream)
        way.received.copy_(way.sent, non_blocking=True)
        copied_in.record(self._stream)
        way.replay()
        computed.record(self._stream)
        way.result.copy_(way.output, non_blocking=True)
        copied_out.record(self._stream)
        copied_out.synchronize()
        return began.elapsed_time(copied_in) / 1e3, computed.elapsed_time(copied_out) / 1e3

    def is_usable(self) -> bool:
        """Whether the device still computes; after a sticky error every call raises."""
        try:
            with torch.cuda.stream(self._stream):
                total = torch.ones(8, device=self.device).sum()
                self._stream.synchronize()
                return float(total) == 8
        except torch.OutOfMemoryError:
            return True  # full, not broken
        except RuntimeError:
            return False


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let no garbage collection free memory of the device in the middle of a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def memory_bytes(device: torch.device) -> dict[str, Callable[[], float]]:
    """Return readers of the device's memory (bytes) that tensors take, and that torch holds."""
    return {
        "allocated": lambda: torch.cuda.memory_allocated(device),
        "reserved": lambda: torch.cuda.memory_reserved(device),
    }
