"""A batcher that uses the event loop's clock, and a function that submits requests to it."""

import asyncio
from collections.abc import Callable, Sequence

from app.artifacts.loader import Model
from app.engine.batcher import Batcher
from app.engine.request import Priority, QueuedRequest, never_disconnected
from app.errors import GatehouseError
from app.ranking.batch import RankedRequest
from app.telemetry.metrics import Metrics
from tests.support.fakes import limits, queued, sums_model


def batcher(lanes, *, metrics=None, **changes) -> Batcher:
    clock = asyncio.get_running_loop().time
    return Batcher(lanes, metrics=metrics or Metrics(), clock=clock, **limits(**changes))


def submit(
    subject: Batcher,
    user: float,
    candidates: Sequence[float],
    *,
    timeout_s: float = 10.0,
    model: Model | None = None,
    priority: Priority = Priority.NORMAL,
    is_disconnected: Callable[[], bool] = never_disconnected,
) -> "asyncio.Future[RankedRequest]":
    """Submit a request; cancelling the future disconnects its client."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[RankedRequest] = loop.create_future()

    def on_done(request: QueuedRequest) -> None:
        assert request.is_done
        if answer.cancelled():
            return
        if request.error is not None:
            answer.set_exception(request.error)
        else:
            assert request.ranked is not None
            answer.set_result(request.ranked)

    request = queued(user, candidates, model=model or sums_model())
    request.deadline = loop.time() + timeout_s
    request.priority = priority
    request.is_disconnected = lambda: answer.cancelled() or is_disconnected()
    request.on_done = on_done
    try:
        subject.submit(request)
    except GatehouseError as error:
        answer.set_exception(error.with_traceback(None))
    return answer
