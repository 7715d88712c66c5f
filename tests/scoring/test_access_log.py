"""The access log: which requests are logged, with what, and at which level."""

import logging
from collections.abc import Mapping

import httpx
import pytest

from app.scoring.access_log import REFUSALS_PER_S, AccessLog, AccessLogMiddleware, request_id_of
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord

STAGES_S = (0.001,) * 7


def lines(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "app.access"]


def fields(record: logging.LogRecord) -> Mapping[str, object]:
    found: Mapping[str, object] = record.__dict__["fields"]
    return found


@pytest.mark.parametrize(("status", "level"), [(200, logging.INFO), (500, logging.ERROR)])
async def test_only_status_500_is_logged_as_an_error(service, caplog, status, level):
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


def test_of_many_refusals_only_some_are_logged_and_the_rest_is_counted(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    now = 100.0
    monkeypatch.setattr("app.scoring.access_log.time.monotonic", lambda: now)
    metrics = Metrics()
    log = AccessLog(metrics, log_sample=0, slow_request_s=10)
    for _ in range(1000):
        log.add(RequestRecord("/v1/score", "feed", 503, 0.001), "POST", "the-id")
    log.add(RequestRecord("/v1/score", "feed", 504, 0.001), "POST", "the-id")
    assert [fields(each)["status"] for each in lines(caplog)] == [503] * REFUSALS_PER_S + [504]
    caplog.clear()
    now = 101.0
    for _ in range(2):
        log.add(RequestRecord("/v1/score", "feed", 503, 0.001), "POST", "the-id")
    assert [fields(each).get("not_logged") for each in lines(caplog)] == [
        1000 - REFUSALS_PER_S,
        None,
    ]
    labels = {"route": "/v1/score", "model": "feed", "status": "503"}
    assert metrics.registry.get_sample_value("gatehouse_requests_total", labels) == 1002


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
    with_key, without_key = lines(caplog)
    assert fields(with_key) == line | {"candidates": 3, "key": "anna"}
    assert fields(without_key) == line


def test_well_formed_request_id_is_kept():
    assert request_id_of(b"a-Z.9_:/+=") == "a-Z.9_:/+="
    assert request_id_of(b"x" * 128) == "x" * 128


@pytest.mark.parametrize("stated", [None, b"", b"a b", b'a"b', b"\xff", b"x" * 129], ids=str)
def test_any_other_request_id_is_replaced_by_a_new_one(stated):
    new, other = request_id_of(stated), request_id_of(stated)
    assert len(new) == 32
    assert new != other
