"""`traceparent`: what is well formed, and what a call makes of it."""

import logging

import pytest

from app.scoring.trace import parse_traceparent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_well_formed_header_gets_a_span_of_its_own():
    trace, other = (parse_traceparent(f"00-{TRACE}-{PARENT}-01".encode()) for _ in range(2))
    assert trace is not None
    assert other is not None
    assert (trace.trace_id, trace.parent_id, trace.flags) == (TRACE, PARENT, "01")
    assert len({trace.span_id, other.span_id, PARENT}) == 3
    assert trace.header_line == f"traceparent: 00-{TRACE}-{trace.span_id}-01\r\n".encode()


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (f"00-{TRACE}-{PARENT}-00", "00"),
        (f"00-{TRACE}-{PARENT}-fe", "00"),
        (f"00-{TRACE}-{PARENT}-03", "01"),
        (f"cc-{TRACE}-{PARENT}-01", "01"),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be", "01"),
    ],
)
def test_only_the_sampled_flag_is_passed_on(header, flags):
    trace = parse_traceparent(header.encode())
    assert trace is not None
    assert trace.flags == flags


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"cc-{TRACE}-{PARENT}-01more",
        f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_malformed_header_is_ignored(header):
    assert parse_traceparent(header.encode()) is None


@pytest.mark.parametrize("request_of", [lambda example: example, lambda _: {}], ids=["200", "422"])
async def test_response_and_log_carry_the_trace(client, example, service, caplog, request_of):
    caplog.set_level(logging.INFO)
    service.scorer._log._log_sample = 1.0
    try:
        response = await client.post(
            "/v1/score",
            json=request_of(example),
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        )
    finally:
        service.scorer._log._log_sample = 0.01
    version, trace_id, span_id, flags = response.headers["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    [line] = [record.fields for record in caplog.records if record.name == "app.access"]
    assert line["trace_id"] == TRACE
    assert line["parent_id"] == PARENT
    assert line["span_id"] == span_id


async def test_response_has_no_trace_without_a_well_formed_header(client, example):
    assert "traceparent" not in (await client.post("/v1/score", json=example)).headers
    wrong = {"traceparent": "00-1-2-3"}
    response = await client.post("/v1/score", json=example, headers=wrong)
    assert response.status_code == 200
    assert "traceparent" not in response.headers
