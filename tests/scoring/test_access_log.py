"""What the access log says, and how loudly."""

import logging

import httpx
import pytest

from app.scoring.access_log import AccessLogMiddleware
from app.telemetry.metrics import Metrics


@pytest.mark.parametrize(("status", "level"), [(200, logging.INFO), (500, logging.ERROR)])
async def test_an_answer_that_is_a_servers_fault_is_logged_as_an_error(
    service, caplog, status, level
):
    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    caplog.set_level(logging.INFO)
    observed = AccessLogMiddleware(app, service.service, Metrics(), log_sample=1, slow_request_s=10)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(observed), base_url="http://gatehouse"
    ) as client:
        assert (await client.get("/")).status_code == status
    assert [record.levelno for record in caplog.records if record.name == "app.access"] == [level]
