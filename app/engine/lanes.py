"""Lanes: worker threads that run batches, one batch at a time each.

TorchScript releases the GIL while it computes, so lanes run beside the event loop and beside each
other. A lane owns what happens in its thread; the event loop hands it work and gets the outcome
back through `call_soon_threadsafe`.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch

from app.artifacts.columns import Column, Columns, ModelInputs
from app.artifacts.loader import Model
from app.artifacts.program import scores

_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of one request: what it gives to a batch."""

    user: Columns
    candidate: Columns
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a lane made of a batch.

    Attributes:
        scores: `[B, K]` float32, or the exception that the batch ended in.
        collate_s: time to bring the parts together.
        compute_s: time in the model, its link functions included.
        copy_in_s: time to bring inputs to a GPU; 0 where nothing is copied.
        copy_out_s: time to bring outputs back.
        finite: whether every score is known to be finite.
        is_fatal: whether the lane can run no batch after this one.
    """

    scores: npt.NDArray[np.float32] | Exception
    collate_s: float = 0.0
    compute_s: float = 0.0
    copy_in_s: float = 0.0
    copy_out_s: float = 0.0
    finite: bool = False
    is_fatal: bool = False

    @property
    def duration_s(self) -> float:
        """How long the lane was busy."""
        return self.collate_s + self.copy_in_s + self.compute_s + self.copy_out_s


OnOutcome = Callable[[BatchResult], None]
Collate = Callable[[Sequence[Part]], ModelInputs]
Executor = Callable[[Model, Sequence[Part]], BatchResult]
"""Runs a batch in a lane's thread; raises nothing."""


@dataclass(frozen=True, slots=True)
class _Work:
    model: Model
    parts: Sequence[Part]
    on_outcome: OnOutcome


class Lane:
    """One thread that runs batches on one device.

    Owned by the event loop, but for `_main`, which is the thread.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int = 1,
        executor: Executor | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            name: of the thread, and in metrics.
            loop: the event loop that outcomes are reported to.
            threads: how many cores one operator may use in it.
            executor: what runs a batch; `run`, on CPU cores, by default.
            on_lost: called on the event loop, once, after an outcome that is fatal.
        """
        self.name = name
        self._loop = loop
        self._run = executor or run
        self._on_lost = on_lost
        self._is_lost = False
        self._outstanding = 0  # batches handed over and not reported
        self._progress = 0.0  # loop time (s) of the last report, or of the end of idleness
        self._threads = threads
        self._inbox: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "busy" if self._outstanding else "idle"
        return f"<Lane {self.name} {state if self._thread.is_alive() else 'stopped'}>"

    def submit(self, model: Model, parts: Sequence[Part], on_outcome: OnOutcome) -> None:
        """Run a batch after those handed over before; `on_outcome` is called on the event loop."""
        if not self._outstanding:
            self._progress = self._loop.time()
        self._outstanding += 1
        self._inbox.put(_Work(model, parts, on_outcome))

    async def run(self, model: Model, parts: Sequence[Part]) -> BatchResult:
        """Run a batch and wait for it."""
        done: asyncio.Future[BatchResult] = self._loop.create_future()

        def resolve(outcome: BatchResult) -> None:
            if not done.done():  # the waiting task was cancelled, as in a warm-up at shutdown
                done.set_result(outcome)

        self.submit(model, parts, resolve)
        return await done

    def is_alive(self, hang_s: float) -> bool:
        """Whether the thread lives and no batch has kept it busy for longer than `hang_s`."""
        stuck = self._outstanding > 0 and self._loop.time() - self._progress > hang_s
        return self._thread.is_alive() and not stuck and not self._is_lost

    def stop(self) -> None:
        """End the thread after the batch it is at; leave it behind if that takes long."""
        self._inbox.put(None)
        self._thread.join(_PATIENCE_S)

    def _main(self) -> None:
        torch.get_num_threads()  # else the first operator would take what any thread set last
        torch.set_num_threads(self._threads)  # holds for the calling thread only
        while (work := self._inbox.get()) is not None:
            outcome = self._run(work.model, work.parts)
            self._loop.call_soon_threadsafe(self._report, work.on_outcome, outcome)
            del work, outcome  # nothing of a request outlives its batch while the lane is idle

    def _report(self, on_outcome: OnOutcome, outcome: BatchResult) -> None:
        self._outstanding -= 1
        self._progress = self._loop.time()
        on_outcome(outcome)
        if outcome.is_fatal and not self._is_lost:
            self._is_lost = True
            if self._on_lost is not None:
                self._on_lost()


def run(model: Model, parts: Sequence[Part], collated: Collate | None = None) -> BatchResult:
    """Bring parts together, run them as one batch, and return scores for all of its rows.

    `collated` brings them together in the caller's own memory; by default `collate` does.
    """
    began = time.perf_counter()
    try:
        batch = (collated or collate)(parts)
        ready = time.perf_counter()
        result = scores(model.program.run(batch), model.manifest.tasks)
    except Exception as error:  # noqa: BLE001  (whatever a model raises fails its batch, not the lane)
        return BatchResult(error, 0.0, time.perf_counter() - began)
    finite = bool(np.isfinite(result).all())
    return BatchResult(result, ready - began, time.perf_counter() - ready, finite=finite)


def collate(parts: Sequence[Part]) -> ModelInputs:
    """Bring parts together: one user row a part, candidate rows one part after the other."""
    if len(parts) == 1:
        (part,) = parts
        rows = part.stop - part.start
        user = {name: _as_batch(column) for name, column in part.user.items()}
        candidate = {
            name: _as_batch(column[part.start : part.stop])
            for name, column in part.candidate.items()
        }
        return ModelInputs(user, candidate, np.zeros(rows, np.int64))
    return ModelInputs(
        user={name: np.concatenate([p.user[name] for p in parts]) for name in parts[0].user},
        candidate={
            name: np.concatenate([p.candidate[name][p.start : p.stop] for p in parts])
            for name in parts[0].candidate
        },
        row_to_request=np.repeat(np.arange(len(parts)), [p.stop - p.start for p in parts]),
    )


def _as_batch(column: Column) -> Column:
    """Return a column that a tensor can share; a view of a request's bytes is copied."""
    return column if column.flags.writeable and column.flags.aligned else column.copy()
