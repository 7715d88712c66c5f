"""A batcher on the loop's own clock, and a caller of it."""

import asyncio

from app.engine.batcher import Batcher
from app.engine.pieces import Scored
from app.engine.request import Priority, Terms, stays
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
    has_left=stays,
) -> "asyncio.Task[Scored]":
    loop = asyncio.get_running_loop()
    terms = Terms(loop.time() + timeout_s, priority, has_left)
    score = subject.score(model or sums_model(), request(user, candidates), terms)
    return loop.create_task(score)
