"""What becomes of a batch that failed: who runs again, with whom, and who is told.

Owned by the event loop.
"""

import logging

import torch

from app.artifacts.loader import Model
from app.engine.batch import Batch
from app.engine.queue import ModelQueue
from app.errors import InferenceFailed
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


def after_failure(
    error: Exception, group: Batch, model: Model, queue: ModelQueue, metrics: Metrics
) -> None:
    """Put back into the queue what may still succeed, and fail the requests that will not.

    Where memory ran out, the limit of a batch is halved; `ModelQueue.learn` doubles it again.
    Otherwise each half of the group runs again by itself, until the request at fault is found.
    """
    rows = group.rows
    if is_out_of_memory(error) and rows > 1:
        queue.halve(group)
        metrics.failed("out-of-memory")
        metrics.batch_limit(str(model), queue.max_batch_rows)
        logger.error("no memory for %d rows of %s; now %d", rows, model, queue.max_batch_rows)
        return
    metrics.failed("model")
    halves = group.halves()
    queue.put_back(halves)
    if not halves:
        for chunk in group.chunks:
            chunk.pending.fail(InferenceFailed("the model failed on this request"))
    if group.reruns is None or not halves:  # once for the batch, once for whoever is at fault
        requests = len(group.chunks)
        logger.error("a batch of %s failed: %d requests", model, requests, exc_info=error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer rows might have succeeded where this error was raised."""
    # On CPU the allocator raises a plain RuntimeError that only its text tells apart.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
