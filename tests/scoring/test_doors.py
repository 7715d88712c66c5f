"""Score calls behave alike on a socket of the server and through the ASGI application."""

import asyncio
import gzip
import logging

import httpx
import orjson
import pytest

from tests.support.doors import GATE, INFER, SCORE, native, open_door, tensors
from tests.support.waiting import until

ANNA = "anna-has-20-letters-"


@pytest.fixture(params=["direct", "asgi"])
def kind(request):
    return request.param


@pytest.fixture
async def door(kind, tmp_path):
    async with open_door(kind, tmp_path, max_body_bytes=100_000, max_candidates=1000) as door:
        yield door


def problem_of(response: httpx.Response) -> str:
    """The slug of an error in the native form, whose other members are checked."""
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["content-length"]) == len(response.content)
    assert problem["status"] == response.status_code
    assert problem["instance"] == response.headers["x-request-id"]
    slug: str = problem["type"].removeprefix("/problems/")
    return slug


async def test_plain_calls_use_the_transport_under_test(door):
    """Otherwise the tests of the direct door would test the other one."""
    assert (await door.post()).status_code == 200
    assert (await door.post(INFER, tensors())).status_code == 200
    assert door.asgi_paths == ([] if door.kind == "direct" else [SCORE, INFER])


async def test_direct_and_asgi_responses_have_equal_bytes(tmp_path):
    answers = {}
    for kind in ("direct", "asgi"):
        async with open_door(kind, tmp_path) as door:
            requests = [
                (SCORE, native()),
                ("/v1/models/sums/versions/1/score", native(ranking={"explain": True})),
                (SCORE, native(candidate_keys=["a", "b", 3], ranking={"top_k": 2})),
                (INFER, tensors()),
                (SCORE, native([])),
                (SCORE, b"{"),
                (SCORE, native(["x"])),
                (INFER, b"[]"),
                ("/v1/models/nobody/score", native()),
                ("/v2/models/sums/versions/7/infer", tensors()),
            ]
            responses = [await door.post(*request, x_request_id="7") for request in requests]
            answers[kind] = [
                (response.status_code, response.content, sorted(set(response.headers) - {"date"}))
                for response in responses
            ]
    assert answers["direct"] == answers["asgi"]
    assert [status for status, *_ in answers["direct"]] == [200] * 5 + [400, 422, 422, 404, 404]


async def test_scores_and_ranking_are_those_of_the_request(door):
    answer = (await door.post(body=native([1, 3, 2], user=10))).json()
    assert answer["scores"] == {"sum": [11, 13, 12], "own": [1, 3, 2]}
    assert answer["ranking"] == [1, 2, 0]


async def test_concurrent_calls_get_their_own_responses(door):
    sizes = [1 + number % 30 for number in range(100)]
    responses = await asyncio.gather(
        *(door.post(body=native([number] * size)) for number, size in enumerate(sizes))
    )
    for number, (size, response) in enumerate(zip(sizes, responses, strict=True)):
        assert response.json()["scores"]["own"] == [number] * size


# Keys


@pytest.fixture
async def guarded(kind, tmp_path):
    async with open_door(kind, tmp_path, keys=f"anna:{ANNA}") as door:
        yield door


async def test_call_without_a_key_is_refused_unread(guarded):
    assert await guarded.post_head(100) == 401
    response = await guarded.post(x_request_timeout_ms="soon")
    assert problem_of(response) == "unauthorized"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["detail"].startswith("API key required")


async def test_call_with_a_wrong_key_is_refused(guarded):
    response = await guarded.post(authorization="Bearer " + "x" * 30)
    assert problem_of(response) == "unauthorized"
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert response.json()["detail"] == "invalid API key"


async def test_key_is_named_in_metrics_and_log(guarded, caplog):
    caplog.set_level(logging.INFO)
    assert (await guarded.post(authorization=f"Bearer {ANNA}")).status_code == 200
    assert guarded.value("requests_by_key_total", key="anna", status="200") == 1
    (line,) = log_lines(caplog)
    assert line["key"] == "anna"
    assert ANNA not in caplog.text + str(line)


# Limits and wrong requests


@pytest.mark.parametrize(
    ("headers", "status", "slug"),
    [
        ({}, 413, "payload-too-large"),
        ({"content_type": "text/plain"}, 415, "unsupported-media-type"),
        ({"x_request_timeout_ms": "soon"}, 422, "invalid-request"),
        ({"x_request_priority": "urgent"}, 422, "invalid-request"),
    ],
)
async def test_head_is_refused_before_the_body_is_read(door, headers, status, slug):
    length = 100_001 if status == 413 else 100
    if "content_type" not in headers:
        assert await door.post_head(length, **headers) == status
    response = await door.post(body=b" " * length, **headers)
    assert (response.status_code, problem_of(response)) == (status, slug)


async def test_refused_body_does_not_end_the_connection(door):
    for _ in range(3):
        response = await door.post(body=b" " * 100_000, x_request_priority="urgent")
        assert response.status_code == 422
        assert "connection" not in response.headers
        assert (await door.post()).status_code == 200


async def test_too_many_candidates_are_refused(door):
    response = await door.post(body=native([1] * 1001))
    assert (response.status_code, problem_of(response)) == (413, "payload-too-large")
    assert response.json()["detail"] == "too many candidates: 1001, limit 1000"


async def test_wrong_request_is_reported_with_every_place(door):
    response = await door.post(body=native(["x"], user="y"))
    assert (response.status_code, problem_of(response)) == (422, "invalid-request")
    pointers = {error["pointer"] for error in response.json()["errors"]}
    assert pointers == {"/user/u", "/candidates/c/0"}


async def test_malformed_body_is_refused(door):
    response = await door.post(body=b"{")
    assert (response.status_code, problem_of(response)) == (400, "malformed-body")


@pytest.mark.parametrize("path", ["/v1/models/nobody/score", "/v1/models/sums/versions/2/score"])
async def test_unknown_model_or_version_is_not_found(door, path):
    assert await door.post_head(100, path) == 404


async def test_other_methods_are_not_allowed(door):
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        response = await door.client.request(method, SCORE)
        assert (response.status_code, problem_of(response)) == (405, "method-not-allowed")
        assert response.headers["allow"] == "POST"


async def test_errors_of_the_v2_protocol_have_its_form(door):
    for body, status in ((b"{", 400), (b"[]", 422), (b" " * 100_001, 413)):
        response = await door.post(INFER, body)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        assert list(response.json()) == ["error"]
        assert response.headers["x-request-id"]


async def test_body_that_is_not_json_by_its_content_type_is_v2_binary_data(door):
    response = await door.post(INFER, tensors(), content_type="application/octet-stream")
    assert response.status_code == 200
    refused = await door.post(SCORE, native(), content_type="application/octet-stream")
    assert refused.status_code == 415


# Overload


async def test_full_queue_refuses_with_retry_after(kind, tmp_path):
    async with open_door(kind, tmp_path, max_queue_rows=1000, max_candidates=1000) as door:
        running = asyncio.ensure_future(door.post(GATE))
        await door.gate.is_entered()
        queued = asyncio.ensure_future(door.post(body=native([1] * 600)))
        await until(lambda: door.parts.service.batcher.queues.rows == 600)
        response = await door.post(body=native([1] * 600))
        assert (response.status_code, problem_of(response)) == (429, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert door.value("shed_total", reason="overloaded") == 1
        door.gate.open()
        assert [(await request).status_code for request in (running, queued)] == [200, 200]


async def test_requests_are_refused_unread_after_a_refusal(kind, tmp_path):
    async with open_door(kind, tmp_path) as door:
        (sums,) = [
            m for m in door.parts.service.registry.active_models() if m.manifest.name == "sums"
        ]
        running = asyncio.ensure_future(door.post(GATE))
        await door.gate.is_entered()
        door.parts.service.batcher.learn(sums, [(1, 100.0), (16, 100.0)])
        response = await door.post()
        assert (response.status_code, problem_of(response)) == (503, "deadline-unmeetable")
        assert await door.post_head(100) == 503
        assert door.value("shed_total", reason="deadline-unmeetable") == 2
        door.gate.open()
        assert (await running).status_code == 200


async def test_request_that_waits_past_its_deadline_is_504(door):
    running = asyncio.ensure_future(door.post(GATE))
    await door.gate.is_entered()
    response = await door.post(x_request_timeout_ms="50")
    assert (response.status_code, problem_of(response)) == (504, "deadline-exceeded")
    assert door.value("shed_total", reason="deadline-exceeded") == 1
    door.gate.open()
    assert (await running).status_code == 200


async def test_disconnected_request_is_dropped_before_it_is_computed(door):
    running = asyncio.ensure_future(door.post(GATE, native([1] * 5)))
    await door.gate.is_entered()
    disconnect = await door.post_and_disconnect()
    await until(lambda: door.parts.service.batcher.queues.chunks == 1)
    other = asyncio.ensure_future(door.post(GATE, native([1] * 7)))
    await until(lambda: door.parts.service.batcher.queues.chunks == 2)
    await disconnect()
    door.gate.open()
    assert [(await request).status_code for request in (running, other)] == [200, 200]
    assert door.gate.batches == [5, 7]
    assert door.value("cancelled_total", stage="queue") == 1
    labels = {"route": "/v1/models/{model}/score", "model": "gate"}
    assert door.value("requests_total", **labels, status="499") == 1
    assert door.value("requests_total", **labels, status="200") == 2
    assert door.sent == []


async def test_nothing_is_sent_to_a_client_that_disconnects_during_the_batch(door):
    disconnect = await door.post_and_disconnect()
    await door.gate.is_entered()
    await disconnect()
    door.gate.open()
    await until(lambda: door.value("cancelled_total", stage="compute") == 1)
    labels = {"route": "/v1/models/{model}/score", "model": "gate"}
    assert door.value("requests_total", **labels, status="499") == 1
    assert door.sent == []
    assert (await door.post()).status_code == 200


# Headers, log and metrics


async def test_request_id_is_repeated_or_generated(door):
    assert (await door.post(x_request_id="abc-123")).headers["x-request-id"] == "abc-123"
    made = {(await door.post()).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert (await door.post(x_request_id='a"b c')).headers["x-request-id"] != 'a"b c'
    refused = await door.post(body=b"{", x_request_id="abc-123")
    assert refused.headers.get_list("x-request-id") == ["abc-123"]


async def test_server_timing_has_every_stage(door):
    response = await door.post()
    timings = [entry.split(";dur=") for entry in response.headers["server-timing"].split(", ")]
    assert [stage for stage, _ in timings] == [
        *("decode", "encode", "queue", "collate", "compute", "rank", "respond")
    ]
    assert all(float(duration) >= 0 for _, duration in timings)


async def test_no_header_is_sent_twice(door):
    for response in (await door.post(), await door.post(body=b"{")):
        names = [name for name, _ in response.headers.multi_items()]
        assert len(names) == len(set(names))
        assert int(response.headers["content-length"]) == len(response.content)


def log_lines(caplog) -> list[dict[str, object]]:
    return [record.__dict__["fields"] for record in caplog.records if record.name == "app.access"]


async def test_each_call_is_one_log_line(door, caplog):
    caplog.set_level(logging.INFO)
    await door.post(x_request_id="one")
    await door.post(body=native(["x"]), x_request_id="two")
    await door.client.get(SCORE, headers={"x-request-id": "three"})
    lines = log_lines(caplog)
    assert all(float(str(line.pop("ms"))) > 0 for line in lines)
    route = {"method": "POST", "route": "/v1/models/{model}/score"}
    assert lines == [
        {"id": "one", **route, "status": 200, "candidates": 3, "model": "sums/1"},
        {"id": "two", **route, "status": 422, "model": "sums/1", "problem": "invalid-request"},
        {
            "id": "three",
            **route | {"method": "GET"},
            "status": 405,
            "problem": "method-not-allowed",
        },
    ]


async def test_each_call_is_counted_once(door):
    for body in (native(), native([1] * 7), b"{", native(["x"])):
        await door.post(body=body)
    labels = {"route": "/v1/models/{model}/score", "model": "sums"}
    counts = [
        door.value("requests_total", **labels, status=status) for status in ("200", "400", "422")
    ]
    assert counts == [2, 1, 1]
    assert door.value("request_duration_seconds_count", **labels) == 4
    assert door.value("request_candidates_count") == 2
    assert door.value("request_candidates_sum") == 10
    assert door.value("stage_duration_seconds_count", stage="compute") == 2
    assert door.value("batch_rows_sum") == 10
    assert door.value("policy_applied_total", policy="default") == 2


async def test_unexpected_error_is_500_with_the_id_and_in_the_log(door, caplog, monkeypatch):
    monkeypatch.setattr(door.parts.service.policies, "of", lambda _: 1 / 0)
    response = await door.post(x_request_id="the-id")
    assert (response.status_code, problem_of(response)) == (500, "internal-error")
    assert response.json()["instance"] == "the-id"
    assert "ZeroDivisionError" in caplog.text
    labels = {"route": "/v1/models/{model}/score", "model": "sums", "status": "500"}
    assert door.value("requests_total", **labels) == 1
    monkeypatch.undo()
    assert (await door.post()).status_code == 200


# Draining


async def test_responses_close_the_connection_while_the_server_drains(door):
    before = await door.post()
    assert "connection" not in before.headers
    door.parts.service.readiness.drain()
    for response in (await door.post(), await door.post(body=b"{")):
        assert response.headers.get_list("connection") == ["close"]
    assert (await door.post()).status_code == 200


# Content codings


async def test_large_response_is_compressed_if_the_client_accepts_it(door):
    body = native([number / 7 for number in range(1000)])
    plain = await door.post(body=body, accept_encoding="identity")
    assert plain.headers["vary"] == "accept-encoding"
    assert "content-encoding" not in plain.headers
    packed = await door.post(body=body, accept_encoding="gzip")
    assert packed.headers["vary"] == "accept-encoding"
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 1.5


async def test_very_large_response_is_compressed_on_a_thread(kind, tmp_path):
    async with open_door(kind, tmp_path, max_candidates=4096) as door:
        body = native([number / 7 for number in range(4096)])
        plain = await door.post(body=body, accept_encoding="identity")
        assert len(plain.content) > 1 << 16
        responses = await asyncio.gather(*(door.post(body=body) for _ in range(5)))
        for response in responses:
            assert response.headers["content-encoding"] == "gzip"
            assert response.content == plain.content


async def test_compressed_request_is_read_through_the_asgi_application(door):
    members = gzip.compress(native()[:10]) + gzip.compress(native()[10:])
    for body in (gzip.compress(native()), members):
        response = await door.post(body=body, content_encoding="gzip")
        assert response.content == (await door.post()).content
    assert door.asgi_paths.count(SCORE) >= 2


async def test_chunked_request_is_read_through_the_asgi_application(door):
    async def chunks():
        for byte in native():
            yield bytes((byte,))

    response = await door.client.post(
        SCORE, content=chunks(), headers={"content-type": "application/json"}
    )
    assert response.content == (await door.post()).content


# Pages of other origins


async def test_only_an_allowed_origin_may_read_the_response(kind, tmp_path):
    allowed, other = "https://example.org", "https://example.com"
    async with open_door(kind, tmp_path, cors_origins=allowed) as door:
        for body, status in ((native(), 200), (b"{", 400)):
            response = await door.post(body=body, origin=allowed)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == allowed
            refused = await door.post(body=body, origin=other)
            assert "access-control-allow-origin" not in refused.headers
        assert len(door.asgi_paths) == 4


async def test_by_default_no_other_origin_may_read_a_response(door):
    response = await door.post(origin="https://example.org")
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control-")]


async def test_response_is_valid_json(door):
    response = await door.post()
    assert response.headers["content-type"] == "application/json"
    assert orjson.loads(response.content)["model"] == "sums"
