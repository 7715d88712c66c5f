"""The CUDA stream of a GPU lane. Apart from loading a model, only this module calls CUDA."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from app.engine.gpu.graphs import Graph, Transfer

_WARM_UP_RUNS = (
    3  # libraries choose algorithms and allocate workspaces, which a capture must not do
)

_capturing = threading.Lock()
"""One capture at a time: captures are short, so there is no need to know what they share."""


class CudaStream:
    """A stream of its own for each lane, so that one batch's copies overlap another's compute.

    Nothing here waits for the whole device: that would break a capture in progress on another lane,
    whatever its error mode. See "CUDA Graphs" in the CUDA programming guide and in PyTorch's
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
        """Return page-locked memory, uint8 `[size]`: copies from and to it do not block."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def device_bytes(self, size: int) -> Tensor:
        """Return device memory, uint8 `[size]`."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def pool(self) -> object:
        """Return a memory pool for graphs of this stream, which are never replayed together."""
        return torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], Tensor], pool: object) -> Graph:
        """Return `work` as a CUDA graph; only this thread's errors break it (`thread_local`).

        `torch.cuda.graph` is not used: it waits for the whole device and collects garbage first.
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
                with suppress(RuntimeError):  # ending a failed capture raises the same error again
                    graph.capture_end()
                raise
            graph.capture_end()
        return Graph(graph.replay, output)

    def run(self, transfer: Transfer) -> tuple[float, float]:
        """Copy in, replay, copy out, and wait; return how long (s) the two copies took."""
        began, copied_in, computed, copied_out = self._marks
        began.record(self._stream)
        transfer.received.copy_(transfer.sent, non_blocking=True)
        copied_in.record(self._stream)
        transfer.replay()
        computed.record(self._stream)
        transfer.result.copy_(transfer.output, non_blocking=True)
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
    """Prevent garbage collection, which could free device memory during a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def memory_bytes(device: torch.device) -> dict[str, Callable[[], float]]:
    """Return functions that read the device memory (bytes) of tensors, and of torch in total."""
    return {
        "allocated": lambda: torch.cuda.memory_allocated(device),
        "reserved": lambda: torch.cuda.memory_reserved(device),
    }
