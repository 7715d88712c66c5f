"""An answer that is late is no success, wherever its time went."""

import time

import httpx

from app.protocol.native import Native
from app.scoring.access_log import AccessLogMiddleware
from app.scoring.body import BodyReader
from app.scoring.budget import ByteBudget
from app.scoring.keys import Keys
from app.scoring.score import Limits, ScoreRoutes
from app.telemetry.metrics import Metrics


class SlowWriter(Native):
    """Takes longer to write an answer than its caller waits."""

    def write(self, request, answer, call):
        time.sleep(call.terms.deadline - time.monotonic() + 0.01)
        return super().write(request, answer, call)


async def test_an_answer_that_was_written_too_late_is_an_error(service, example):
    metrics = Metrics()
    routes = ScoreRoutes(
        service.app,
        service.service,
        metrics,
        BodyReader(max_bytes=100_000, timeout_s=5, budget=ByteBudget(1 << 20, metrics)),
        Limits(max_candidates=100, default_timeout_s=2.0),
        Keys(text=None, file=None),
        [SlowWriter()],
    )
    app = AccessLogMiddleware(routes, service.service, metrics, log_sample=0, slow_request_s=10)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
        response = await client.post("/v1/score", json=example)
    assert response.status_code == 504
    assert response.json()["type"] == "/problems/deadline-exceeded"
    shed = metrics.registry.get_sample_value(
        "gatehouse_shed_total", {"reason": "deadline-exceeded"}
    )
    assert shed == 1
