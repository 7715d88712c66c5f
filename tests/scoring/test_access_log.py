"""The access log: which requests are logged, with what, and at which level."""

import asyncio
import logging
from collections.abc import Mapping

import httpx
import pytest

from app.scoring.access_log import AccessLog, AccessLogMiddleware, request_id_of
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord

STAGES_S = (0.001,) * 7


def lines(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "app.access"]


def fields(record: logging.LogRecord) -> Mapping[str, object]:
    found: Mapping[str, object] = record.__dict__["fields"]
    return found


@pytest.mark.parametrize(
    ("status", "level"), [(200, logging.INFO), (500, logging.ERROR), (503, logging.WARNING)]
)
async def test_server_errors_are_logged_as_errors_and_warnings(service, caplog, status, level):
    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    caplog.set_level(logging.INFO)
    metrics = Metrics()
    log = AccessLog(metrics, log_sample=1, slow_request_s=10)
    logged = AccessLogMiddleware(app, service.service.readiness, log)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(logged), base_url="http://gatehouse"
    ) as client:
        assert (await client.get("/")).status_code == status
    assert [record.levelno for record in lines(caplog)] == [level]
    labels = {"route": "other", "model": "", "status": str(status)}
    assert metrics.registry.get_sample_value("gatehouse_requests_total", labels) == 1


@pytest.mark.parametrize(
    ("status", "duration_s", "is_logged"),
    [(200, 0.1, False), (422, 0.1, False), (200, 0.5, True), (499, 0.1, True), (503, 0.1, True)],
)
def test_slow_and_failed_requests_are_always_logged(caplog, status, duration_s, is_logged):
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    log = AccessLog(metrics, log_sample=0, slow_request_s=0.5)
    log.add(RequestRecord("/v1/score", "feed", status, duration_s), "POST", "the-id")
    assert len(lines(caplog)) == is_logged
    labels = {"route": "/v1/score", "model": "feed", "status": str(status)}
    assert metrics.registry.get_sample_value("gatehouse_requests_total", labels) == 1


def test_about_the_configured_share_of_requests_is_logged(caplog):
    caplog.set_level(logging.INFO)
    log = AccessLog(Metrics(), log_sample=0.5, slow_request_s=10)
    for _ in range(1000):
        log.add(RequestRecord("/v1/score", "feed", 200, 0.001), "POST", "the-id")
    assert 400 < len(lines(caplog)) < 600


def test_log_line_names_the_request_and_the_key(caplog):
    caplog.set_level(logging.INFO)
    log = AccessLog(Metrics(), log_sample=1, slow_request_s=10)
    record = RequestRecord(
        "/v1/score", "feed", 200, 0.0123456, key="anna", candidates=3, stages=(0.001,) * 7
    )
    log.add(record, "POST", "the-id")
    log.add(record._replace(key="", stages=()), "POST", "the-id")
    line = {"id": "the-id", "method": "POST", "route": "/v1/score", "status": 200, "ms": 12.346}
    line |= {"model": "feed"}
    with_key, without_key = lines(caplog)
    assert fields(with_key) == line | {"candidates": 3, "key": "anna"}
    assert fields(without_key) == line


def test_slow_request_is_logged_with_version_stages_and_deadline(caplog):
    caplog.set_level(logging.INFO)
    log = AccessLog(Metrics(), log_sample=0, slow_request_s=0.1)
    stages = (0.001, 0.002, 0.003, 0.004, 0.5, 0.006, 0.007)
    record = RequestRecord(
        "/v1/score",
        "feed",
        200,
        0.523,
        version="feed/7",
        candidates=500,
        stages=stages,
        role="canary",
    )
    log.add(record, "POST", "the-id", timeout_s=0.6)
    line = fields(lines(caplog)[0])
    assert (line["model"], line["role"], line["candidates"]) == ("feed/7", "canary", 500)
    assert line["deadline_ms"] == 600.0
    assert line["stages_ms"] == {
        "decode": 1.0,
        "encode": 2.0,
        "queue": 3.0,
        "collate": 4.0,
        "compute": 500.0,
        "rank": 6.0,
        "respond": 7.0,
    }


@pytest.mark.parametrize("route", ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"])
def test_health_probes_are_counted_and_not_logged(caplog, route):
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    log = AccessLog(metrics, log_sample=1, slow_request_s=0.1)
    for status in (200, 503):
        log.add(RequestRecord(route, "", status, 0.2), "GET", "the-id")
        labels = {"route": route, "model": "", "status": str(status)}
        assert metrics.registry.get_sample_value("gatehouse_requests_total", labels) == 1
    assert lines(caplog) == []
    log.add(RequestRecord(route, "", 500, 0.2), "GET", "the-id")
    assert [record.levelno for record in lines(caplog)] == [logging.ERROR]


async def test_probes_of_the_service_have_the_routes_that_are_not_logged(client, service, caplog):
    caplog.set_level(logging.INFO)
    log = service.scorer._log
    log._log_sample = 1.0
    try:
        probes = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
        for path in (*probes, "/v2/models/tiny/ready"):
            assert (await client.get(path)).status_code == 200
        assert lines(caplog) == []
        await client.get("/v1/models")
        assert len(lines(caplog)) == 1
    finally:
        log._log_sample = 0.01


async def test_shed_requests_are_summed_up_in_one_line(caplog, monkeypatch):
    monkeypatch.setattr("app.scoring.access_log.SHED_INTERVAL_S", 0.05)
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    log = AccessLog(metrics, log_sample=1, slow_request_s=0.0)
    for n, (status, problem) in enumerate(
        [(503, "deadline-unmeetable"), (429, "overloaded"), (503, "deadline-unmeetable")] * 100
    ):
        log.add(RequestRecord("/v1/score", "feed", status, 0.1), "POST", f"id-{n}", problem)
    assert lines(caplog) == []
    await asyncio.sleep(0.2)
    [line] = lines(caplog)
    assert line.levelno == logging.WARNING
    assert fields(line) == {
        "requests": 300,
        "deadline-unmeetable": 200,
        "overloaded": 100,
        "first_id": "id-0",
    }
    labels = {"route": "/v1/score", "model": "feed", "status": "429"}
    assert metrics.registry.get_sample_value("gatehouse_requests_total", labels) == 100


async def test_close_logs_the_shed_requests_that_are_not_logged_yet(caplog):
    caplog.set_level(logging.INFO)
    log = AccessLog(Metrics(), log_sample=0, slow_request_s=10)
    log.close()
    assert lines(caplog) == []
    log.add(RequestRecord("/v1/score", "feed", 504, 0.1), "POST", "a", "deadline-exceeded")
    log.close()
    log.close()
    [line] = lines(caplog)
    assert fields(line) == {"requests": 1, "deadline-exceeded": 1, "first_id": "a"}


def test_well_formed_request_id_is_kept():
    assert request_id_of(b"a-Z.9_:/+=") == "a-Z.9_:/+="
    assert request_id_of(b"x" * 128) == "x" * 128


@pytest.mark.parametrize("stated", [None, b"", b"a b", b'a"b', b"\xff", b"x" * 129], ids=str)
def test_any_other_request_id_is_replaced_by_a_new_one(stated):
    new, other = request_id_of(stated), request_id_of(stated)
    assert len(new) == 32
    assert new != other
