"""Warm-up: a version runs batches of every size before it serves, so that no request is the first.

The batches also tell what they cost. While other versions answer requests, they run on a thread
beside the lanes.
"""

import time
from collections.abc import Sequence
from functools import partial
from operator import itemgetter

import numpy as np

from app.artifacts.columns import ModelInputs
from app.artifacts.loader import Model
from app.artifacts.onednn import padded_sizes
from app.artifacts.program import error_summary
from app.artifacts.tables.table import Table
from app.engine.batch import Batch, Chunk
from app.engine.batcher import is_out_of_memory
from app.engine.lanes import BatchResult, Lane, run
from app.engine.request import QueuedRequest, RequestFeatures, TableRows, TableUse
from app.errors import ArtifactInvalid
from app.lifecycle.background import BackgroundThread
from app.ranking.policies import NO_POLICIES

BatchTimings = Sequence[tuple[int, float]]
"""Batches that ran: `(rows, seconds)` each."""

_LONGEST_PAUSE_S = 0.1
_PASSES = 3  # the TorchScript executor profiles, then compiles, then runs


class WarmUp:
    """Warms versions up, on lanes or beside them."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        background: BackgroundThread,
        sizes: Sequence[Sequence[int]],
        *,
        is_on_cpu: bool,
    ) -> None:
        """Use these threads.

        Args:
            lanes: every one of them runs every batch, if they run any.
            background: runs the batches beside requests.
            sizes: of the batches, each as the rows of its requests.
            is_on_cpu: whether models run there. What is compiled then belongs to the model,
                whichever thread ran it; on a GPU every lane has graphs of its own.
        """
        self._lanes = lanes
        self._background = background
        self._sizes = sizes
        self._is_on_cpu = is_on_cpu

    async def run(
        self, model: Model, recorded: Sequence[RequestFeatures], *, beside_requests: bool
    ) -> BatchTimings:
        """Run batches of every size a few times, then recorded requests, each alone.

        Args:
            model: the version.
            recorded: requests whose sizes and ids are those of real traffic.
            beside_requests: whether other versions answer requests meanwhile.

        Returns:
            The shortest time of each size.

        Raises:
            ArtifactInvalid: the model failed on a batch.
        """
        if model.program.pads_from:
            most = max(map(sum, self._sizes))
            await self._background.run(
                partial(compile_kernels, model, most, pauses=beside_requests)
            )
        batches = [_batch(model, sizes) for sizes in self._sizes] * _PASSES
        observed = await self._run(batches, beside_requests)
        alone = [_batch_of(model, [features]) for features in recorded] * _PASSES
        await self._run(alone, beside_requests)
        count = len(self._sizes)
        passes = [observed[number::count] for number in range(count)]  # of each size
        # Anything may have slowed down a pass; the first ones compile.
        return [min(timings, key=itemgetter(1)) for timings in passes]

    async def run_folded(self, model: Model, table: Table, *, beside_requests: bool) -> None:
        """Run batches of every size a few times, whose candidates are folded rows of a table.

        Args:
            model: the version; `table` is folded for its program.
            table: with rows.
            beside_requests: whether versions answer requests meanwhile.

        Raises:
            ArtifactInvalid: the model failed on a batch.
        """
        if table.rows:
            batches = [_folded_batch(model, table, sizes) for sizes in self._sizes] * _PASSES
            await self._run(batches, beside_requests)

    async def _run(self, batches: Sequence[Batch], beside_requests: bool) -> BatchTimings:
        if beside_requests and self._is_on_cpu:
            return await self._background.run(partial(_run_here, batches))
        observed: list[tuple[int, float]] = []
        for lane in self._lanes:
            for batch in batches:
                result = await lane.run(batch)
                _check(result)
                observed.append((batch.rows, result.timing.busy_s))
        return observed


def compile_kernels(model: Model, most: int, *, pauses: bool) -> None:
    """Run every size that batches of up to `most` rows are padded to, on this thread.

    Kernels are compiled for each number of rows, and belong to the process. The part of a network
    that is computed once per request has as many rows as the batch has requests, so each size also
    runs as one request per row.
    """
    golden, program = model.golden.batch, model.program
    for rows in padded_sizes(program.pads_from, most):
        taken, user = np.arange(rows) % golden.rows, np.arange(rows) % golden.request_count
        candidate = {name: column[taken] for name, column in golden.candidate.items()}
        for requests in (1, rows) if golden.user else (1,):
            began = time.perf_counter()
            users = {name: column[user[:requests]] for name, column in golden.user.items()}
            inputs = ModelInputs(users, candidate, np.arange(rows) % requests)
            try:
                program.run(inputs)
            except (RuntimeError, ValueError) as error:
                if is_out_of_memory(error) and requests > 1:
                    break  # a batch of so many users is halved when it comes
                raise ArtifactInvalid(f"warm-up failed: {error_summary(error)}") from error
            if pauses:
                _pause(began)


def _run_here(batches: Sequence[Batch]) -> BatchTimings:
    """Run batches on this thread; its CPU time is how long a lane that has a core would take.

    After each one it pauses for as long.
    """
    observed: list[tuple[int, float]] = []
    for batch in batches:
        began, cpu_began = time.perf_counter(), time.thread_time()
        _check(run(batch.model, batch.chunks))
        observed.append((batch.rows, time.thread_time() - cpu_began))
        _pause(began)
    return observed


def _pause(began: float) -> None:
    """Pause for as long as the work that began then took: the lanes may need the core."""
    time.sleep(min(_LONGEST_PAUSE_S, time.perf_counter() - began))


def _check(result: BatchResult) -> None:
    if isinstance(result.scores, Exception):
        raise ArtifactInvalid(f"warm-up failed: {result.scores}") from result.scores


def _batch(model: Model, sizes: Sequence[int]) -> Batch:
    """Return a batch of requests with so many candidates each.

    The user is the first golden user, and the golden candidates are repeated.
    """
    golden = model.golden.batch
    requests = []
    for rows in sizes:
        taken = np.arange(rows) % golden.rows
        features = RequestFeatures(
            user={name: column[:1] for name, column in golden.user.items()},
            candidate={name: column[taken] for name, column in golden.candidate.items()},
            rows=rows,
            unknown_ids={},
        )
        requests.append(features)
    return _batch_of(model, requests)


def _folded_batch(model: Model, table: Table, sizes: Sequence[int]) -> Batch:
    """Return a batch as `_batch` does, whose candidates are rows of a table."""
    user = {name: column[:1] for name, column in model.golden.batch.user.items()}
    positions = table.newest(max(sizes))
    requests = []
    for rows in sizes:
        taken = positions[np.arange(rows) % len(positions)]
        from_table = TableRows(table, taken, frozenset(table.columns), model.program)
        used = TableUse(None, from_table, {}, {}, None, rows)
        requests.append(RequestFeatures(user, {}, rows, {}, used))
    return _batch_of(model, requests)


def _batch_of(model: Model, requests: Sequence[RequestFeatures]) -> Batch:
    """Return a batch of whole requests, ranked by the model's own policy."""
    options = NO_POLICIES.policies_for(model.manifest.traits).default_options
    chunks = []
    for features in requests:
        request = QueuedRequest(model, features, options)
        chunks.append(Chunk(request, features, 0, features.rows))
    return Batch.of(model, chunks)
