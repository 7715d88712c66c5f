"""A snapshot of the engine as plain values: queues and lanes. Taken on the event loop."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from app.engine.batcher import Batcher
from app.engine.lanes import Lane


@dataclass(frozen=True, slots=True)
class QueueState:
    """The queue of one version of a model, and what its batches cost.

    Attributes:
        model: name/version.
        rows: candidates that wait.
        chunks: requests, or parts of one, that wait.
        oldest_ms: how long the oldest of them has waited; None if none waits.
        batch_ms: the fixed cost of a batch, whatever its size.
        row_us: what each row adds (µs).
        batches: how many batches the costs were learned from.
        typical_rows: the size of recent batches.
        max_batch_rows: the most rows of a batch; below the setting after memory ran out.
    """

    model: str
    rows: int
    chunks: int
    oldest_ms: float | None
    batch_ms: float
    row_us: float
    batches: int
    typical_rows: float
    max_batch_rows: int


@dataclass(frozen=True, slots=True)
class LaneState:
    """What one lane is doing.

    Attributes:
        name: as in metrics.
        alive: whether its thread lives and its batch has not hung.
        model: the model of its batch (name/version), or None while it is idle.
        rows: rows of that batch.
        requests: requests that have rows in that batch.
        since_ms: how long the batch has run.
        expected_ms: how long the batch was expected to take.
    """

    name: str
    alive: bool
    model: str | None = None
    rows: int = 0
    requests: int = 0
    since_ms: float = 0.0
    expected_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine at one moment: its queues and its lanes.

    Attributes:
        queued_rows: candidates that wait.
        idle_lanes: lanes that run no batch.
        min_chunk_rows: requests are not split into smaller chunks (a setting).
        max_wait_ms: how long rows may wait for more rows while a lane is idle (a setting).
        max_queue_rows: the most rows of one model that may wait (a setting).
        queues: one for each version that has one.
        lanes: all of them.
    """

    queued_rows: int
    idle_lanes: int
    min_chunk_rows: int
    max_wait_ms: float
    max_queue_rows: int
    queues: list[QueueState]
    lanes: list[LaneState]


def engine_state(batcher: Batcher, lanes: Iterable[Lane], *, hang_s: float) -> EngineState:
    """Return the engine's state; a lane that runs one batch for over `hang_s` is not alive."""
    now = time.monotonic()
    queues = [
        QueueState(
            model=str(model),
            rows=queue.rows,
            chunks=len(queue),
            oldest_ms=_ms(now - queue.oldest_arrival) if queue.rows else None,
            batch_ms=_ms(queue.cost.a_s),
            row_us=_ms(queue.cost.b_s * 1e3),
            batches=queue.cost.batches,
            typical_rows=round(queue.cost.typical_rows, 1),
            max_batch_rows=queue.max_batch_rows,
        )
        for model, queue in batcher.queues.all.items()
    ]
    states = [_lane(lane, batcher, now, hang_s) for lane in lanes]
    idle = sum(state.model is None for state in states)
    return EngineState(
        batcher.queues.rows,
        idle,
        batcher.min_chunk_rows,
        batcher.max_wait_s * 1e3,
        batcher.max_queue_rows,
        queues,
        states,
    )


def _lane(lane: Lane, batcher: Batcher, now: float, hang_s: float) -> LaneState:
    alive = lane.is_alive(hang_s)
    running = batcher.running.get(lane.name)
    if running is None:
        return LaneState(lane.name, alive)
    return LaneState(
        lane.name,
        alive,
        model=str(running.batch.model),
        rows=running.batch.rows,
        requests=len(running.batch.chunks),
        since_ms=_ms(now - running.started),
        expected_ms=_ms(running.cost_s),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
