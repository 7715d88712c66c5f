"""A stream on the CPU with the interface of `CudaStream`, for tests without a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from app.engine.gpu.graphs import Graph, Transfer


class CpuStream:
    """Capture work by storing the function. A replay calls it again with the same input tensors.

    Attributes:
        captures: number of captures.
        replays: number of replays.
        offset: added to the result of a replay, to simulate a wrong graph.
        refusal: error that a capture raises, or None.
        usable: result of `is_usable`.
        asked: number of calls of `is_usable`.
        copied: how many bytes of inputs each run copied.
        room: bytes of device memory that are left; None for any number.
    """

    def __init__(self) -> None:
        self.captures = self.replays = self.asked = 0
        self.offset = 0.0
        self.refusal: Exception | None = None
        self.usable = True
        self.copied: list[int] = []
        self.room: int | None = None

    @contextmanager
    def scope(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    def host_bytes(self, size: int) -> Tensor:
        return torch.full((size,), 0xA5, dtype=torch.uint8)  # uninitialized memory is not zero

    def device_bytes(self, size: int) -> Tensor:
        if self.room is not None:
            if size > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.room -= size
        return self.host_bytes(size)

    def pool(self) -> object:
        return None

    def capture(self, work: Callable[[], Tensor], pool: object) -> Graph:
        assert pool is None
        if self.refusal is not None:
            raise self.refusal
        self.captures += 1
        output = work().clone()

        def replay() -> None:
            self.replays += 1
            output.copy_(work() + self.offset)

        return Graph(replay, output)

    def run(self, transfer: Transfer) -> tuple[float, float]:
        self.copied.append(transfer.sent.nbytes)
        transfer.received.copy_(transfer.sent)
        transfer.replay()
        transfer.result.copy_(transfer.output)
        return 0.001, 0.002

    def is_usable(self) -> bool:
        self.asked += 1
        return self.usable
