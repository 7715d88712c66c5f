"""Batches on a stream of a GPU: a replayed graph where there is one, the model itself elsewhere.

A model of many small operators keeps a GPU waiting for the host that launches them. A CUDA graph
launches all of them at once, for one shape (`buckets.py`) and at fixed addresses (`arena.py`). It
is captured the first time that a batch of its shape comes, which is during warm-up, and is used
only if it gives what the model gave for that batch. A model that cannot be captured, as where it
looks at a value on the host, runs as it is; that is said once, and counted.

This module calls nothing of CUDA itself: that is `Stream`'s, whose real one is in `cuda.py`.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.artifacts.golden import device_name
from app.artifacts.loader import Model
from app.artifacts.program import cause, scores
from app.engine.batch import Chunk
from app.engine.gpu.arena import Arena, Layout
from app.engine.gpu.buckets import Bucket, Buckets
from app.engine.lanes import BatchResult, run
from app.engine.request import BatchTiming
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """A queue of work on a device; used by one thread."""

    def scope(self) -> AbstractContextManager[None]:
        """Make the stream the current one of this thread."""

    def host_bytes(self, size: int) -> Tensor:
        """Return memory of the host that the device copies from and to, uint8 `[size]`."""

    def device_bytes(self, size: int) -> Tensor:
        """Return memory of the device, uint8 `[size]`."""

    def capture(self, work: Callable[[], Tensor], pool: object) -> "Graph":
        """Return `work`, made ready to be launched at once.

        Args:
            work: what is captured; called several times.
            pool: where the graphs of one model on one stream keep what they compute with.

        Raises:
            Exception: it cannot be captured.
        """

    def pool(self) -> object:
        """Return a place for graphs that are never replayed at the same time."""

    def pass_through(self, way: "Transfer") -> tuple[float, float]:
        """Copy in, replay, copy out, and wait; return how long (s) the two copies took."""

    def is_usable(self) -> bool:
        """Whether the device still computes: after some errors it never will again."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Captured work and where it leaves its output, `[B, K]` float32 on the device."""

    replay: Callable[[], None]
    output: Tensor


@dataclass(frozen=True, slots=True)
class Transfer:
    """The way of a batch: `sent → received`, `replay`, `output → result`."""

    sent: Tensor
    received: Tensor
    replay: Callable[[], None]
    output: Tensor
    result: Tensor


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph of one bucket, and what leads into it and out of it."""

    arena: Arena
    size: int  # bytes of inputs
    graph: Graph


@dataclass(slots=True, weakref_slot=True)
class _ModelGraphs:
    """What a lane keeps for a model, as long as the model lives."""

    sent: Tensor  # inputs of the largest bucket, on the host
    received: Tensor  # the same on the device; every graph of the model reads from here
    result: Tensor  # [largest B, K] float32, on the host
    pool: object
    captured: dict[Bucket, _Captured] = field(default_factory=dict)
    is_capturable: bool = True


class Fallbacks:
    """Says once of each model, whatever the number of lanes, that it runs without graphs."""

    def __init__(self, metrics: Metrics) -> None:
        """Count in `metrics`. Any thread may tell."""
        self._metrics = metrics
        self._told: WeakSet[Model] = WeakSet()
        self._lock = threading.Lock()

    def tell(self, model: Model, error: Exception) -> None:
        """Log and count, unless this model has been told of."""
        with self._lock:
            if model in self._told:
                return
            self._told.add(model)
        self._metrics.graph_fallback(model.manifest.name)
        logger.warning("model %s runs without CUDA graphs: %s", model, cause(error))


class GraphExecutor:
    """Runs the batches of one lane; called in the lane's thread."""

    def __init__(self, stream: Stream, *, max_batch_rows: int, fallbacks: Fallbacks) -> None:
        """Run on `stream`; batches of more than `max_batch_rows` are not captured."""
        self._stream = stream
        self._buckets = Buckets(max_batch_rows)
        self._fallbacks = fallbacks
        self._workplaces: WeakKeyDictionary[Model, _ModelGraphs] = WeakKeyDictionary()
        self._is_lost = False

    def __call__(self, model: Model, chunks: Sequence[Chunk]) -> BatchResult:
        """Run a batch; see `app.engine.lanes.run`."""
        if self._is_lost:
            return BatchResult(RuntimeError("the device is lost"), is_fatal=True)
        try:
            with self._stream.scope():
                outcome = self._run(model, chunks)
        except Exception as error:  # noqa: BLE001  (it fails the batch, not the lane)
            outcome = BatchResult(error)
        if isinstance(outcome.scores, Exception) and not self._stream.is_usable():
            self._is_lost = True
            return BatchResult(outcome.scores, is_fatal=True)
        return outcome

    def _run(self, model: Model, chunks: Sequence[Chunk]) -> BatchResult:
        rows = sum(chunk.stop - chunk.start for chunk in chunks)
        bucket = self._buckets.fit(rows, len(chunks))
        workplace = self._workplaces.get(model)
        if workplace is None:
            workplace = self._workplaces[model] = self._workplace(model)
        if bucket in workplace.captured:
            return self._replay(model, chunks, workplace, workplace.captured[bucket])
        outcome = run(model, chunks)
        if bucket and workplace.is_capturable and not isinstance(outcome.scores, Exception):
            try:
                captured = self._capture(model, workplace, bucket)
                replayed = self._replay(model, chunks, workplace, captured)
                _check_equal(model, replayed.scores, outcome.scores)
            except Exception as error:  # noqa: BLE001  (the batch has its scores)
                workplace.is_capturable = False
                workplace.captured.clear()
                self._fallbacks.tell(model, error)
                if not self._stream.is_usable():
                    return BatchResult(error)
            else:
                workplace.captured[bucket] = captured
        return outcome

    def _workplace(self, model: Model) -> _ModelGraphs:
        largest = next(iter(self._buckets))
        size = Layout(model.manifest, largest).size
        tasks = len(model.manifest.tasks)
        result = self._stream.host_bytes(largest.rows * tasks * 4).view(torch.float32)
        return _ModelGraphs(
            sent=self._stream.host_bytes(size),
            received=self._stream.device_bytes(size),
            result=result.view(largest.rows, tasks),
            pool=self._stream.pool(),
        )

    def _capture(self, model: Model, workplace: _ModelGraphs, bucket: Bucket) -> _Captured:
        layout = Layout(model.manifest, bucket)
        arena = Arena(model.manifest, layout.over(workplace.sent))
        inputs = layout.over(workplace.received)
        # Captured as a whole batch of padding: addresses are in a graph, values are not.
        arena.fill_with_padding()
        workplace.received.copy_(workplace.sent)
        program = model.program  # not the model: what is kept for it must not keep it
        graph = self._stream.capture(
            lambda: program.outputs(inputs.user, inputs.candidate, inputs.row_to_request),
            workplace.pool,
        )
        return _Captured(arena, layout.size, graph)

    def _replay(
        self, model: Model, chunks: Sequence[Chunk], workplace: _ModelGraphs, captured: _Captured
    ) -> BatchResult:
        began = time.perf_counter()
        rows = captured.arena.fill(chunks)
        collated = time.perf_counter()
        size, graph = captured.size, captured.graph
        way = Transfer(
            sent=workplace.sent[:size],
            received=workplace.received[:size],
            replay=graph.replay,
            output=graph.output[:rows],
            result=workplace.result[:rows],
        )
        copy_in_s, copy_out_s = self._stream.pass_through(way)
        result = scores(way.result.numpy(), model.manifest.tasks)
        compute_s = time.perf_counter() - collated - copy_in_s - copy_out_s
        finite = bool(np.isfinite(result).all())
        timing = BatchTiming(collated - began, compute_s, 0.0, copy_in_s, copy_out_s)
        return BatchResult(result, timing, finite)


def _check_equal(
    model: Model, got: npt.NDArray[np.float32] | Exception, want: npt.NDArray[np.float32]
) -> None:
    """Refuse scores of a graph that are not those of the model itself."""
    assert not isinstance(got, Exception)
    tolerance = model.manifest.precision.tolerance[device_name(model.program)]
    error_ratio = np.abs(got - want) / (1 + np.abs(want))  # [B, K]
    is_equal = (got == want) | (np.isnan(got) & np.isnan(want))
    if not (is_equal | (error_ratio <= tolerance)).all():
        raise ValueError("its graph gave other scores than the model itself")
