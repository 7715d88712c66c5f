"""Lanes: worker threads that run batches, one batch at a time each.

TorchScript releases the GIL while it computes, so lanes run beside the event loop and beside each
other. A lane collates a batch, runs the model once, and ranks all requests of the batch together.
The event loop hands it batches and gets results back through `call_soon_threadsafe`. While nothing
else runs, the event loop may run a short batch itself, with the memory of an idle lane.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch

from app.artifacts.columns import Column, ModelInputs
from app.artifacts.loader import Model
from app.artifacts.program import scores as link_and_clamp
from app.engine.batch import Batch, Chunk
from app.engine.fold import folded_bytes, gather_folded, is_folded
from app.engine.gather import Allocate, gathered_column, room, sides, use_tables
from app.engine.request import BatchTiming, RequestFeatures
from app.ranking.batch import RankedRequest, rank_alone, rank_batch
from app.ranking.formulas import Numbers, Scores
from app.ranking.ranker import RankingOptions

_JOIN_S = 1.0
_ALIGNMENT = 64  # bytes: a cache line, and as much as torch's own allocator gives


@dataclass(slots=True, eq=False)
class BatchResult:
    """The result of a batch that a lane ran.

    Attributes:
        scores: `[B, K]` float32, or the exception that the batch ended with.
        timing: how long the stages took.
        is_finite: whether every score is known to be finite.
        is_fatal: whether the lane cannot run any batch after this one.
        ranked: for each chunk, the result of its request if the chunk holds all of its rows.
    """

    scores: Scores | Exception
    timing: BatchTiming = field(default_factory=BatchTiming)
    is_finite: bool = False
    is_fatal: bool = False
    ranked: Sequence[RankedRequest | None] = ()


OnResult = Callable[[BatchResult], None]
Collate = Callable[[Sequence[Chunk]], ModelInputs]
Executor = Callable[[Model, Sequence[Chunk]], BatchResult]
"""Runs a batch in a lane's thread and returns scores that are not ranked yet; never raises."""


class Lane:
    """One thread that runs batches on one device.

    Owned by the event loop, except for `_main`, which is the thread.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int = 1,
        executor: Executor | None = None,
        runs_inline: bool = False,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            name: of the thread, and in metrics.
            loop: the event loop that results are reported to.
            threads: how many cores one operator may use.
            executor: runs a batch; by default `run`, on CPU cores.
            runs_inline: whether the executor may also run on the event loop's thread.
            on_lost: called on the event loop, once, after a fatal result.
        """
        self.name = name
        self.runs_inline = runs_inline
        self._loop = loop
        self._run = executor or run
        self._on_lost = on_lost
        self._is_lost = False
        self._outstanding = 0  # batches submitted and not reported
        self._progress_at = 0.0  # monotonic time (s) of the last report, or of the end of idleness
        self._threads = threads
        self._inbox: SimpleQueue[tuple[Batch, OnResult] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "busy" if self._outstanding else "idle"
        return f"<Lane {self.name} {state if self._thread.is_alive() else 'stopped'}>"

    def submit(self, batch: Batch, on_result: OnResult) -> None:
        """Run a batch after those submitted before; `on_result` is called on the event loop."""
        if not self._outstanding:
            self._progress_at = time.monotonic()
        self._outstanding += 1
        self._inbox.put((batch, on_result))

    async def run(self, batch: Batch) -> BatchResult:
        """Run a batch and wait for it."""
        done: asyncio.Future[BatchResult] = self._loop.create_future()

        def resolve(result: BatchResult) -> None:
            if not done.done():  # the waiting task was cancelled, as in a warm-up at shutdown
                done.set_result(result)

        self.submit(batch, resolve)
        return await done

    def run_inline(self, batch: Batch) -> BatchResult:
        """Run a batch in the calling thread, the event loop's, while the lane is idle."""
        return self._execute(batch)

    def _execute(self, batch: Batch) -> BatchResult:
        began = time.thread_time()
        result = self._run(batch.model, batch.chunks)
        rank(batch.chunks, result)
        result.timing.cpu_s = time.thread_time() - began
        return result

    def is_alive(self, hang_s: float) -> bool:
        """Whether the thread lives and no batch has kept it busy for longer than `hang_s`."""
        hangs = self._outstanding > 0 and time.monotonic() - self._progress_at > hang_s
        return self._thread.is_alive() and not hangs and not self._is_lost

    def stop(self) -> None:
        """End the thread after its current batch; leave it behind if that takes long."""
        self._inbox.put(None)
        self._thread.join(_JOIN_S)

    def _main(self) -> None:
        use_threads(self._threads)
        while (work := self._inbox.get()) is not None:
            batch, on_result = work
            result = self._execute(batch)
            self._loop.call_soon_threadsafe(self._report, on_result, result)
            del work, batch, on_result, result  # an idle lane keeps nothing of a request

    def _report(self, on_result: OnResult, result: BatchResult) -> None:
        self._outstanding -= 1
        self._progress_at = time.monotonic()
        on_result(result)
        if result.is_fatal and not self._is_lost:
            self._is_lost = True
            if self._on_lost is not None:
                self._on_lost()


def use_threads(count: int) -> None:
    """Let operators that the calling thread runs use so many cores."""
    torch.get_num_threads()  # else the first operator uses what any thread set last
    torch.set_num_threads(count)  # holds for the calling thread only


def run(model: Model, chunks: Sequence[Chunk], collate_into: Collate | None = None) -> BatchResult:
    """Collate chunks, run them through the model, and return the scores of all rows.

    `collate_into` collates in the caller's own memory; by default `collate` does.
    """
    began = time.perf_counter()
    try:
        inputs = (collate_into or collate)(chunks)
        ready = time.perf_counter()
        result = link_and_clamp(model.program.run(inputs), model.manifest.tasks)
    except Exception as error:  # noqa: BLE001  (whatever a model raises fails its batch, not the lane)
        return BatchResult(error, BatchTiming(compute_s=time.perf_counter() - began))
    is_finite = bool(np.isfinite(result).all())
    timing = BatchTiming(collate_s=ready - began, compute_s=time.perf_counter() - ready)
    return BatchResult(result, timing, is_finite)


def rank(chunks: Sequence[Chunk], result: BatchResult) -> None:
    """Rank the requests whose rows are all in this batch; adds `ranked` and its time to `result`.

    If a score is not finite, nothing is ranked here: the batcher finds the request at fault.
    """
    if isinstance(result.scores, Exception):
        return
    began = time.perf_counter()
    try:
        result.ranked = _ranked(chunks, result.scores) if result.is_finite else [None] * len(chunks)
    except Exception as error:  # noqa: BLE001  (as in `run`)
        result.scores = error
    result.timing.rank_s = time.perf_counter() - began


def _ranked(chunks: Sequence[Chunk], scores: Scores) -> Sequence[RankedRequest | None]:
    if len(chunks) == 1:
        (chunk,) = chunks
        if not chunk.is_whole:
            return [None]
        ranking = chunk.request.ranking
        return [rank_alone(scores, ranking, multiplier_of(ranking, chunk.features))]
    bounds = [0]
    for chunk in chunks:
        bounds.append(bounds[-1] + chunk.stop - chunk.start)
    # At most the first and the last chunk are parts of a request; their ranking is not used.
    ranked = rank_batch(
        scores,
        bounds,
        [chunk.request.ranking for chunk in chunks],
        lambda index, name: _multiplier(chunks[index], name),
    )
    return [
        result if chunk.is_whole else None for result, chunk in zip(ranked, chunks, strict=True)
    ]


def _multiplier(chunk: Chunk, name: str) -> Numbers:
    numbers: Numbers = chunk.features.candidate_column(name)[chunk.start : chunk.stop, 0]
    return numbers  # [n, 1] → [n]


def multiplier_of(ranking: RankingOptions, features: RequestFeatures) -> Numbers | None:
    """Return the feature `[n]` that a request's policy multiplies by, if it has one."""
    name = ranking.ranker.policy.multiplier
    return None if name is None else features.candidate_column(name)[:, 0]  # [n, 1] → [n]


def collate(chunks: Sequence[Chunk], *, unfolded: bool = False) -> ModelInputs:
    """Join chunks: one user row for each, then the candidate rows one chunk after the other.

    With `unfolded` the batch has the features of its candidates, even if they are folded.
    """
    if use_tables(chunks):
        return _gathered(chunks, np.empty, folded=not unfolded and is_folded(chunks))
    if len(chunks) == 1:
        (chunk,) = chunks
        features = chunk.features
        start, stop = chunk.start, chunk.stop
        user = {name: _shareable(column) for name, column in features.user.items()}
        candidate = {
            name: _shareable(column[start:stop]) for name, column in features.candidate.items()
        }
        return ModelInputs(user, candidate, np.zeros(stop - start, np.int64))
    users, candidates = _columns(chunks)
    return ModelInputs(
        user={name: np.concatenate(columns) for name, columns in users.items()},
        candidate={name: np.concatenate(columns) for name, columns in candidates.items()},
        row_to_request=_row_to_request(chunks),
    )


def _gathered(chunks: Sequence[Chunk], allocate: Allocate, *, folded: bool) -> ModelInputs:
    """Join chunks as `collate` does; columns from tables are gathered into new memory."""
    manifest = chunks[0].request.model.manifest
    users, candidates = sides(chunks)
    user = {
        feature.name: gathered_column(feature, users, allocate) for feature in manifest.user_inputs
    }
    row_to_request = _row_to_request(chunks)
    if folded:
        rows = gather_folded(chunks, len(row_to_request), allocate)
        return ModelInputs(user, {}, row_to_request, rows)
    inputs = manifest.candidate_inputs
    candidate = {feature.name: gathered_column(feature, candidates, allocate) for feature in inputs}
    return ModelInputs(user, candidate, row_to_request)


def _columns(
    chunks: Sequence[Chunk],
) -> tuple[dict[str, list[Column]], dict[str, list[Column]]]:
    """Return the chunks' columns by feature: of the users, and of the candidates."""
    features = [chunk.features for chunk in chunks]
    spans = [slice(chunk.start, chunk.stop) for chunk in chunks]
    user = {name: [request.user[name] for request in features] for name in features[0].user}
    candidate = {
        name: [request.candidate[name][span] for request, span in zip(features, spans, strict=True)]
        for name in features[0].candidate
    }
    return user, candidate


def _row_to_request(chunks: Sequence[Chunk]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(chunks)), [chunk.stop - chunk.start for chunk in chunks])


def _shareable(column: Column) -> Column:
    """Return a column whose memory a tensor can share; a view of a request's bytes is copied."""
    return column if column.flags.writeable and column.flags.aligned else column.copy()


class Staging:
    """A buffer that a CPU lane collates its batches in, so that no batch waits for memory pages.

    Ten requests of 50 rows and 100 numbers are collated in a quarter of the time. A batch is valid
    until the next one. The buffer grows to the largest batch. Owned by its lane's thread.
    """

    def __init__(self) -> None:
        """Start with no memory."""
        self._buffer: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0

    def collate(self, chunks: Sequence[Chunk]) -> ModelInputs:
        """Join chunks as `collate` does; what a single chunk brings along is not copied."""
        if use_tables(chunks):
            rows = sum([chunk.stop - chunk.start for chunk in chunks])
            manifest = chunks[0].request.model.manifest
            size = room(manifest, len(chunks), rows, _ALIGNMENT) + _ALIGNMENT
            folded = is_folded(chunks)
            if folded:
                size += folded_bytes(chunks, rows) + _ALIGNMENT
            self._make_room(size)
            return _gathered(chunks, self._allocate, folded=folded)
        if len(chunks) == 1:
            return collate(chunks)
        user, candidate = _columns(chunks)
        self._make_room(sum(map(_room, [*user.values(), *candidate.values()])))
        return ModelInputs(
            user={name: self._joined(columns) for name, columns in user.items()},
            candidate={name: self._joined(columns) for name, columns in candidate.items()},
            row_to_request=_row_to_request(chunks),
        )

    def _make_room(self, size: int) -> None:
        if size > len(self._buffer):
            self._buffer = np.empty(2 * size, np.uint8)
        self._used = -self._buffer.ctypes.data % _ALIGNMENT

    def _joined(self, columns: Sequence[Column]) -> Column:
        first = columns[0]
        joined = self._allocate((sum(map(len, columns)), *first.shape[1:]), first.dtype.type)
        return np.concatenate(columns, out=joined)

    def _allocate(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Column:
        """Return the next part of the buffer, which has room for it."""
        size = prod(shape) * np.dtype(dtype).itemsize
        part = self._buffer[self._used : self._used + size].view(dtype).reshape(shape)
        self._used += size + -size % _ALIGNMENT
        return part


def _room(columns: Sequence[Column]) -> int:
    return sum([column.nbytes for column in columns]) + 2 * _ALIGNMENT
