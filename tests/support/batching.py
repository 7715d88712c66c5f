"""A batcher on the loop's own clock, and a caller of it."""

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
    terms = RequestOptions(loop.time() + timeout_s, priority, is_disconnected)
    score = subject.score(model or sums_model(), request(user, candidates), terms)
    return loop.create_task(score)
