"""A batcher that uses the event loop's clock, and a function that submits requests to it."""

import asyncio

from app.engine.batch import Scored
from app.engine.batcher import Batcher
from app.engine.request import Priority, RequestOptions, never_disconnected
from app.telemetry.metrics import Metrics
from tests.support.fakes import limits, request, sums_model


def batcher(lanes, *, metrics=None, **changes) -> Batcher:
    clock = asyncio.get_running_loop().time
    return Batcher(lanes, metrics=metrics or Metrics(), clock=clock, **limits(**changes))


def submit(
    subject,
    user,
    candidates,
    *,
    timeout_s=10.0,
    model=None,
    priority=Priority.NORMAL,
    is_disconnected=never_disconnected,
) -> "asyncio.Task[Scored]":
    loop = asyncio.get_running_loop()
    options = RequestOptions(loop.time() + timeout_s, priority, is_disconnected)
    score = subject.score(model or sums_model(), request(user, candidates), options)
    return loop.create_task(score)
