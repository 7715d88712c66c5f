"""A response that is late is an error, even if only writing it was slow."""

import time
from dataclasses import replace

import httpx
import pytest

from app.protocol.dialect import Content, ParsedRequest
from app.protocol.native import Native
from app.ranking.batch import RankedRequest
from app.scoring.access_log import AccessLog, AccessLogMiddleware
from app.scoring.asgi import ScoreRoutes
from app.scoring.keys import Keys
from app.scoring.score import Scorer
from app.telemetry.metrics import Metrics

TIMEOUT_S = 0.5


class SlowWriter:
    """Takes longer to write a response than its client waits."""

    def __init__(self, parsed: ParsedRequest) -> None:
        self._writer = parsed.writer

    def write(self, ranked: RankedRequest) -> Content:
        time.sleep(TIMEOUT_S)
        return self._writer.write(ranked)


class SlowNative(Native):
    def parse(self, body, context):
        parsed = super().parse(body, context)
        return replace(parsed, writer=SlowWriter(parsed))


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
async def slow_client(service, metrics):
    """A client of the service with a dialect that is slow to write."""
    log = AccessLog(metrics, log_sample=0, slow_request_s=10)
    limits = replace(service.scorer.limits, default_timeout_s=TIMEOUT_S)
    scorer = Scorer(
        service.service, [SlowNative()], keys=Keys(), limits=limits, log=log, metrics=metrics
    )
    routes = ScoreRoutes(service.app, scorer, service.bodies)
    app = AccessLogMiddleware(routes, service.service.readiness, log)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
        yield client


async def test_response_that_was_written_too_late_is_an_error(slow_client, metrics, example):
    response = await slow_client.post("/v1/score", json=example)
    assert response.status_code == 504
    assert response.json()["type"] == "/problems/deadline-exceeded"
    assert response.json()["detail"] == "the response was not ready before the deadline"
    value = metrics.registry.get_sample_value
    assert value("gatehouse_shed_total", {"reason": "deadline-exceeded"}) == 1
    labels = {"route": "/v1/score", "model": "tiny", "status": "504"}
    assert value("gatehouse_requests_total", labels) == 1
