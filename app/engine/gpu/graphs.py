"""Run batches on a GPU stream: replay a CUDA graph if there is one, else call the model.

If a model has many small operators, the GPU waits for the host to launch them. A CUDA graph
launches all of them at once, for one shape (`buckets.py`) and at fixed addresses (`arena.py`). It
is captured when the first batch of its shape runs, which is during warm-up. It is used only if its
scores match the model's scores for that batch. A model that cannot be captured, for example because
it reads a value on the host, runs without graphs; this is logged once and counted.

If the item table of a batch is on the device (`tables.py`), its records are gathered there, and a
second graph copies their fields into the inputs of the first one.

This module does not call CUDA itself. `Stream` does; `cuda.py` has the real one.
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
from app.artifacts.program import error_summary, scores
from app.engine.batch import Chunk
from app.engine.gather import use_tables
from app.engine.gpu.arena import Arena, DeviceInputs, Layout
from app.engine.gpu.buckets import Bucket, Buckets
from app.engine.gpu.tables import DeviceTables, SharedTable
from app.engine.lanes import BatchResult, run
from app.engine.request import BatchTiming
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """A queue of work on a device; used by one thread."""

    def scope(self) -> AbstractContextManager[None]:
        """Make the stream the current one of this thread."""

    def host_bytes(self, size: int) -> Tensor:
        """Return host memory that the device copies from and to, uint8 `[size]`."""

    def device_bytes(self, size: int) -> Tensor:
        """Return device memory, uint8 `[size]`."""

    def capture(self, work: Callable[[], Tensor], pool: object) -> "Graph":
        """Return `work` as a graph that is launched at once.

        Args:
            work: what is captured; called several times.
            pool: memory that the graphs of one model on one stream share.

        Raises:
            Exception: it cannot be captured.
        """

    def pool(self) -> object:
        """Return a memory pool for graphs that are never replayed at the same time."""

    def run(self, transfer: "Transfer") -> tuple[float, float]:
        """Copy in, replay, copy out, and wait; return how long (s) the two copies took."""

    def is_usable(self) -> bool:
        """Whether the device still computes; after some errors it never does again."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Captured work and where it leaves its output, `[B, K]` float32 on the device."""

    replay: Callable[[], None]
    output: Tensor


@dataclass(frozen=True, slots=True)
class Transfer:
    """The steps of a batch: copy `sent → received`, `replay`, copy `output → result`."""

    sent: Tensor
    received: Tensor
    replay: Callable[[], None]
    output: Tensor
    result: Tensor


@dataclass(frozen=True, slots=True)
class _BucketGraph:
    """The graph of one bucket, and its inputs on both sides.

    Attributes:
        arena: where its batches are collated.
        layout: of the inputs.
        sent: the inputs on the host.
        received: the same on the device; the graph reads them.
    """

    arena: Arena
    layout: Layout
    sent: DeviceInputs
    received: DeviceInputs
    graph: Graph


@dataclass(slots=True)
class _Unpacking:
    """Graphs that copy the fields of records into the inputs of a model.

    Attributes:
        layout: of the records.
        records: int64 `[largest B, W]` on the device: the rows of a batch.
        graphs: by bucket.
    """

    layout: str
    records: Tensor
    graphs: dict[Bucket, Graph] = field(default_factory=dict)

    def gather(self, table: SharedTable, bucket: Bucket) -> "_Gather":
        """Return how a batch of a captured bucket is gathered."""
        return _Gather(table, self.records[: bucket.rows], self.graphs[bucket])


@dataclass(frozen=True, slots=True)
class _Gather:
    """How the candidates of one batch come from a table on the device.

    Attributes:
        table: it has the rows.
        records: int64 `[B, W]` on the device, where the rows are gathered.
        unpack: copies the fields of `records` into the inputs of the bucket's graph.
    """

    table: SharedTable
    records: Tensor
    unpack: Graph

    def collate(
        self, bucket: _BucketGraph, chunks: Sequence[Chunk]
    ) -> tuple[slice, Callable[[], None]]:
        """Collate a batch; return what of the arena to copy, and what to run on the stream then."""
        rows, names, received = self.table.rows, self.table.names, bucket.received
        changed = bucket.arena.fill_rows(chunks, names, rows.padding)
        sent = [name for name in received.candidate if name not in names]

        def replay() -> None:
            torch.index_select(rows.base.records, 0, received.rows, out=self.records)
            if changed and rows.changed is not None:
                places, numbers = received.changes[:, :changed]
                self.records.index_copy_(0, places, rows.changed.index_select(0, numbers))
            self.unpack.replay()
            for name in sent:  # after the fields: what a request sends wins
                received.candidate[name].copy_(bucket.sent.candidate[name], non_blocking=True)
            bucket.graph.replay()

        layout = bucket.layout
        return layout.changed_rows if changed else layout.rows, replay


@dataclass(slots=True, weakref_slot=True)
class _ModelGraphs:
    """The graphs and buffers of a model on one lane; kept as long as the model lives."""

    sent: Tensor  # inputs of the largest bucket, on the host
    received: Tensor  # the same on the device; every graph of the model reads from here
    result: Tensor  # [largest B, K] float32, on the host
    pool: object
    captured: dict[Bucket, _BucketGraph] = field(default_factory=dict)
    is_capturable: bool = True
    unpacking: _Unpacking | None = None


class Fallbacks:
    """Reports models that run without graphs: once each, whatever the number of lanes."""

    def __init__(self, metrics: Metrics) -> None:
        """Count in `metrics`. Any thread may call `report`."""
        self._metrics = metrics
        self._reported: WeakSet[Model] = WeakSet()
        self._lock = threading.Lock()

    def report(self, model: Model, error: Exception) -> None:
        """Log and count a model, unless that was done before."""
        with self._lock:
            if model in self._reported:
                return
            self._reported.add(model)
        self._metrics.graph_fallback(model.manifest.name)
        logger.warning("model %s runs without CUDA graphs: %s", model, error_summary(error))


class GraphExecutor:
    """Runs the batches of one lane; called in the lane's thread."""

    def __init__(
        self,
        stream: Stream,
        *,
        max_batch_rows: int,
        fallbacks: Fallbacks,
        tables: DeviceTables | None = None,
    ) -> None:
        """Run on a stream.

        Args:
            stream: of this lane.
            max_batch_rows: larger batches are not captured.
            fallbacks: reports models that run without graphs.
            tables: item tables on the stream's device; None if there are none.
        """
        self._stream = stream
        self._tables = tables
        self._buckets = Buckets(max_batch_rows)
        self._fallbacks = fallbacks
        self._graphs: WeakKeyDictionary[Model, _ModelGraphs] = WeakKeyDictionary()
        self._is_lost = False

    def __call__(self, model: Model, chunks: Sequence[Chunk]) -> BatchResult:
        """Run a batch; see `app.engine.lanes.run`."""
        if self._is_lost:
            return BatchResult(RuntimeError("the device is lost"), is_fatal=True)
        try:
            with self._stream.scope():
                result = self._run(model, chunks)
        except Exception as error:  # noqa: BLE001  (it fails the batch, not the lane)
            result = BatchResult(error)
        if isinstance(result.scores, Exception) and not self._stream.is_usable():
            self._is_lost = True
            return BatchResult(result.scores, is_fatal=True)
        return result

    def _run(self, model: Model, chunks: Sequence[Chunk]) -> BatchResult:
        rows = sum(chunk.stop - chunk.start for chunk in chunks)
        bucket = self._buckets.fit(rows, len(chunks))
        graphs = self._graphs.get(model)
        if graphs is None:
            graphs = self._graphs[model] = self._new_graphs(model)
        if bucket in graphs.captured:
            shared = None
            if self._tables is not None and use_tables(chunks):
                shared = self._tables.shared(model, chunks)
            if shared is not None:
                return self._gather(model, chunks, graphs, bucket, shared)
            return self._replay(model, chunks, graphs, graphs.captured[bucket])
        result = run(model, chunks)
        if bucket and graphs.is_capturable and not isinstance(result.scores, Exception):
            try:
                captured = self._capture(model, graphs, bucket)
                replayed = self._replay(model, chunks, graphs, captured)
                _check_equal(model, replayed.scores, result.scores)
            except Exception as error:  # noqa: BLE001  (the batch has its scores)
                graphs.is_capturable = False
                graphs.captured.clear()
                self._fallbacks.report(model, error)
                if not self._stream.is_usable():
                    return BatchResult(error)
            else:
                graphs.captured[bucket] = captured
        return result

    def _new_graphs(self, model: Model) -> _ModelGraphs:
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

    def _capture(self, model: Model, graphs: _ModelGraphs, bucket: Bucket) -> _BucketGraph:
        layout = Layout(model.manifest, bucket)
        sent, inputs = layout.over(graphs.sent), layout.over(graphs.received)
        arena = Arena(model.manifest, sent)
        # Captured with a batch of padding: a graph contains addresses, not values.
        arena.fill_with_padding()
        graphs.received.copy_(graphs.sent)
        program = model.program  # not the model: its graphs must not keep it alive
        graph = self._stream.capture(
            lambda: program.outputs(inputs.user, inputs.candidate, inputs.row_to_request),
            graphs.pool,
        )
        return _BucketGraph(arena, layout, sent, inputs, graph)

    def _gather(
        self,
        model: Model,
        chunks: Sequence[Chunk],
        graphs: _ModelGraphs,
        bucket: Bucket,
        shared: SharedTable,
    ) -> BatchResult:
        """Run a batch whose candidates come from a table on the device.

        The first batch of each bucket is gathered on the host, too: the scores must be the same.
        """
        captured, unpacking = graphs.captured[bucket], graphs.unpacking
        is_known = unpacking is not None and unpacking.layout == shared.rows.base.layout
        if unpacking is not None and is_known and bucket in unpacking.graphs:
            gather = unpacking.gather(shared, bucket)
            return self._replay(model, chunks, graphs, captured, gather)
        result = self._replay(model, chunks, graphs, captured)
        assert not isinstance(result.scores, Exception)
        try:
            if unpacking is None or not is_known:
                unpacking = graphs.unpacking = self._new_unpacking(shared)
            self._capture_unpacking(model, graphs, bucket, unpacking, shared)
            gather = unpacking.gather(shared, bucket)
            gathered = self._replay(model, chunks, graphs, captured, gather)
            _check_equal(model, gathered.scores, result.scores)
        except Exception as error:  # noqa: BLE001  (the batch has its scores)
            assert self._tables is not None
            self._tables.exclude(model, error)
            graphs.unpacking = None
            if not self._stream.is_usable():
                return BatchResult(error)
        return result

    def _new_unpacking(self, shared: SharedTable) -> _Unpacking:
        rows, size = next(iter(self._buckets)).rows, shared.rows.base.record.itemsize
        records = self._stream.device_bytes(rows * size).view(torch.int64)
        return _Unpacking(shared.rows.base.layout, records.view(rows, size // 8))

    def _capture_unpacking(
        self,
        model: Model,
        graphs: _ModelGraphs,
        bucket: Bucket,
        unpacking: _Unpacking,
        shared: SharedTable,
    ) -> None:
        """Capture how records become the inputs of a bucket's graph."""
        received = graphs.captured[bucket].received
        fields = shared.rows.base.fields(unpacking.records[: bucket.rows])
        pairs = [
            (received.candidate[feature.name], fields[feature.name])
            for feature in model.manifest.candidate_inputs
            if feature.name in fields
        ]

        def unpack() -> Tensor:
            for column, part in pairs:
                column.copy_(part)
            return received.rows

        unpacking.graphs[bucket] = self._stream.capture(unpack, graphs.pool)

    def _replay(
        self,
        model: Model,
        chunks: Sequence[Chunk],
        graphs: _ModelGraphs,
        captured: _BucketGraph,
        gather: _Gather | None = None,
    ) -> BatchResult:
        began = time.perf_counter()
        rows = sum([chunk.stop - chunk.start for chunk in chunks])
        graph = captured.graph
        if gather is None:
            captured.arena.fill(chunks)
            part, replay = captured.layout.features, graph.replay
        else:
            part, replay = gather.collate(captured, chunks)
        collated = time.perf_counter()
        transfer = Transfer(
            sent=graphs.sent[part],
            received=graphs.received[part],
            replay=replay,
            output=graph.output[:rows],
            result=graphs.result[:rows],
        )
        copy_in_s, copy_out_s = self._stream.run(transfer)
        result = scores(transfer.result.numpy(), model.manifest.tasks)
        compute_s = time.perf_counter() - collated - copy_in_s - copy_out_s
        finite = bool(np.isfinite(result).all())
        timing = BatchTiming(collated - began, compute_s, 0.0, copy_in_s, copy_out_s)
        return BatchResult(result, timing, finite)


def _check_equal(
    model: Model, got: npt.NDArray[np.float32] | Exception, want: npt.NDArray[np.float32]
) -> None:
    """Check that the scores of a graph match those of the model.

    Raises:
        ValueError: they do not.
    """
    assert not isinstance(got, Exception)
    tolerance = model.manifest.precision.tolerance[device_name(model.program)]
    error_ratio = np.abs(got - want) / (1 + np.abs(want))  # [B, K]
    is_equal = (got == want) | (np.isnan(got) & np.isnan(want))
    if not (is_equal | (error_ratio <= tolerance)).all():
        raise ValueError("the scores of its graph differ from the model's own")
