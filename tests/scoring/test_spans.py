"""Spans over OTLP: sampled calls with their stages, received by a real HTTP receiver."""

import asyncio
import builtins
import json
import re
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import httpx
import pytest

from app.errors import ConfigurationInvalid
from app.main import gatehouse
from app.scoring.otel import VARIABLES, misspelt_variables, span_recorder
from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests.support.in_process import client_of
from tests.support.otlp import attributes, collector
from tests.support.server import running_server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["decode", "encode", "queue", "collate", "compute", "rank", "respond"]
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def receiver(monkeypatch):
    with collector() as received:
        monkeypatch.setenv(ENDPOINT, received.url)
        yield received


@dataclass
class Caller:
    client: httpx.AsyncClient
    example: dict[str, object]
    metrics: Metrics

    async def post(self, path, **request):
        return await self.client.post(path, **request)


@asynccontextmanager
async def exporting(store):
    """A client of a service that reads its `OTEL_…` variables now."""
    settings = Settings(store=store.folder, lanes=1, request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.start()
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            yield Caller(client, example, parts.metrics)


def traced(metrics, result):
    text = metrics.render().decode()
    found = re.search(rf'gatehouse_traced_requests_total{{result="{result}"}} (\S+)', text)
    assert found is not None
    return float(found[1])


async def test_call_is_a_child_of_the_callers_span_with_its_attributes(store, receiver):
    before_ns = time.time_ns()
    async with exporting(store) as client:
        response = await client.post(
            "/v1/models/tiny/score",
            json=client.example,
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "a-1"},
        )
        receiver.wait_for(lambda: traced(client.metrics, "exported") == 1)
    [call] = receiver.calls()
    assert call.name == "POST /v1/models/{model}/score"
    assert call.trace_id.hex() == TRACE
    assert call.parent_span_id.hex() == PARENT
    assert response.headers["traceparent"] == f"00-{TRACE}-{call.span_id.hex()}-01"
    assert attributes(call) == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}/score",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "gatehouse.request_id": "a-1",
        "gatehouse.model": "tiny",
        "gatehouse.version": 1,
        "gatehouse.role": "active",
        "gatehouse.rows": 3,
        "gatehouse.policy": "default",
    }
    assert before_ns <= call.start_time_unix_nano < call.end_time_unix_nano <= time.time_ns()
    [resource] = receiver.resources
    assert resource["service.name"] == "gatehouse"
    assert resource["service.version"]


async def test_stages_are_children_in_order_within_the_call(store, receiver):
    async with exporting(store) as client:
        response = await client.post("/v1/score", json=client.example)
        receiver.wait_for(lambda: traced(client.metrics, "exported") == 1)
    [call] = receiver.calls()
    stages = receiver.stages(call)
    assert [stage.name for stage in stages] == STAGES
    assert {stage.trace_id for stage in stages} == {call.trace_id}
    assert len({span.span_id for span in (call, *stages)}) == 8
    assert stages[0].start_time_unix_nano >= call.start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= call.end_time_unix_nano
    for first, second in pairwise(stages):
        assert first.end_time_unix_nano <= second.start_time_unix_nano + 20_000  # ns
    timing = dict(re.findall(r"(\w+);dur=([0-9.]+)", response.headers["server-timing"]))
    for stage in stages:
        took_ms = (stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e6
        assert took_ms == pytest.approx(float(timing[stage.name]), abs=2e-3)


async def test_stages_begin_when_the_body_has_arrived(store, receiver):
    async with exporting(store) as client:
        body = json.dumps(client.example).encode()

        async def slowly():
            yield body[:50]
            await asyncio.sleep(0.05)
            yield body[50:]

        headers = {"content-type": "application/json"}
        (await client.post("/v1/score", content=slowly(), headers=headers)).raise_for_status()
        receiver.wait_for(lambda: traced(client.metrics, "exported") == 1)
    [call] = receiver.calls()
    decode, *_, respond = receiver.stages(call)
    assert decode.start_time_unix_nano - call.start_time_unix_nano >= 0.045e9
    assert respond.start_time_unix_nano - call.start_time_unix_nano >= 0.045e9


async def test_calls_that_are_exported_make_room_for_others(store, receiver, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    async with exporting(store) as client:
        for number in range(1, 7):
            await client.post("/v1/score", json=client.example)
            receiver.wait_for(lambda n=number: traced(client.metrics, "exported") == n)
        assert traced(client.metrics, "dropped") == 0


async def test_call_that_fails_has_no_stages_and_names_its_error(store, receiver):
    async with exporting(store) as client:
        await client.post("/v1/score", json={})
        late = {"x-request-timeout-ms": "1"}
        await client.post("/v1/models/tiny/versions/9/score", json=client.example)
        many = client.example | {"candidates": [client.example["candidates"]] * 5000}
        await client.post("/v1/score", json=many, headers=late)
        receiver.wait_for(lambda: len(receiver.calls()) == 3)
    found = [attributes(call) for call in receiver.calls()]
    assert [call["http.response.status_code"] for call in found][:2] == [422, 404]
    assert [call["error.type"] for call in found][:2] == ["invalid-request", "version-not-found"]
    assert len(receiver.spans) == 3


async def test_trace_begins_here_without_a_caller_and_the_response_names_it(store, receiver):
    async with exporting(store) as client:
        response = await client.post("/v1/score", json=client.example)
        receiver.wait_for(lambda: len(receiver.calls()) == 1)
    [call] = receiver.calls()
    assert call.parent_span_id == b""
    named = f"00-{call.trace_id.hex()}-{call.span_id.hex()}-01"
    assert response.headers["traceparent"] == named


@pytest.mark.parametrize(
    ("sampler", "share", "caller", "sampled"),
    [
        ("parentbased_always_on", "", "00", False),
        ("parentbased_always_off", "", "01", True),
        ("parentbased_traceidratio", "0", "01", True),
        ("parentbased_traceidratio", "0", None, False),
        ("parentbased_traceidratio", "1", None, True),
        ("traceidratio", "0", "01", False),
        ("always_on", "", "00", True),
        ("always_off", "", "01", False),
    ],
)
async def test_sampler_of_the_specification_decides(
    store, receiver, monkeypatch, sampler, share, caller, sampled
):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
    headers = {} if caller is None else {"traceparent": f"00-{TRACE}-{PARENT}-{caller}"}
    async with exporting(store) as client:
        response = await client.post("/v1/score", json=client.example, headers=headers)
    # They are flushed when the service stops, for two seconds.
    receiver.wait_for(lambda: len(receiver.calls()) >= sampled)
    assert len(receiver.calls()) == sampled
    if caller is None and not sampled:
        assert "traceparent" not in response.headers
    else:
        assert response.headers["traceparent"].endswith("-01" if sampled else "-00")


async def test_collector_that_hangs_delays_nothing_and_drops_are_counted(store, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
        async with exporting(store) as client:
            for _ in range(20):
                response = await client.post("/v1/score", json=client.example)
                assert response.status_code == 200
            assert traced(client.metrics, "dropped") == 16
            assert traced(client.metrics, "exported") == 0
            began = time.monotonic()
        assert time.monotonic() - began < 30  # the flush at the end is bounded


async def test_collector_that_is_away_is_counted_as_failed(store, monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    async with exporting(store) as client:
        await client.post("/v1/score", json=client.example)
    assert traced(client.metrics, "failed") == 1


async def test_collector_that_refuses_is_counted_as_failed(store, receiver):
    receiver.status = 400
    async with exporting(store) as client:
        await client.post("/v1/score", json=client.example)
        receiver.wait_for(lambda: traced(client.metrics, "failed") == 1)
    assert receiver.posts == 1


def test_variables_that_do_not_ask_for_spans_start_nothing():
    for environment in (
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {ENDPOINT: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"},
        {ENDPOINT: "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
    ):
        assert span_recorder(environment, Metrics(), scheme="http") is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "oltp"},
            'OTEL_TRACES_EXPORTER=oltp: must be otlp or none; did you mean "otlp"?',
        ),
        (
            {ENDPOINT: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: must be http/protobuf (port 4318 of a collector)",
        ),
        (
            {ENDPOINT: "http://c:4318", "OTEL_TRACES_SAMPLER": "traceidratios"},
            'did you mean "traceidratio"?',
        ),
        (
            {ENDPOINT: "collector:4318"},
            f"{ENDPOINT}=collector:4318: must be a URL, such as http://collector:4318",
        ),
        ({ENDPOINT: "nonsense"}, f"{ENDPOINT}=nonsense: must be a URL, such as http://coll"),
        ({ENDPOINT: "grpc://c:4317"}, f"{ENDPOINT}=grpc://c:4317: must be a URL, such as http"),
        ({ENDPOINT: "http://c:99999"}, f"{ENDPOINT}=http://c:99999: must be a URL"),
        ({ENDPOINT: "http://"}, f"{ENDPOINT}=http://: must be a URL"),
        ({ENDPOINT: "ftp://me:secret@c"}, f"{ENDPOINT}: must be a URL, such as http://collector"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "c"},
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=c: must be a URL",
        ),
        (
            {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzpi"},
            "OTEL_EXPORTER_OTLP_COMPRESSION=gzpi: must be none, gzip or deflate; did you",
        ),
        (
            {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/absent.pem"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE=/absent.pem: no such file",
        ),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "a=b,secret"},
            "OTEL_EXPORTER_OTLP_HEADERS: item 2 is not name=value",
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "x"}, "OTEL_RESOURCE_ATTRIBUTES: item 1 is not name=value"),
        (
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"},
            "OTEL_EXPORTER_OTLP_TIMEOUT=10s: must be a number of seconds above 0",
        ),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "1e3"},
            "OTEL_BSP_MAX_QUEUE_SIZE=1e3: must be an integer of 1 or more",
        ),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "100"},
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE (512) must be at most OTEL_BSP_MAX_QUEUE_SIZE (100)",
        ),
        (
            {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"},
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=-1: must be an integer of 0 or more",
        ),
        (
            {"OTEL_SDK_DISABLED": "ture"},
            'OTEL_SDK_DISABLED=ture: must be true or false; did you mean "true"?',
        ),
        (
            {
                ENDPOINT: "http://c:4318",
                "OTEL_TRACES_SAMPLER": "traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "1%",
            },
            "OTEL_TRACES_SAMPLER_ARG=1%: must be a number between 0 and 1, the share of "
            "OTEL_TRACES_SAMPLER=traceidratio",
        ),
    ],
)
def test_variable_with_a_wrong_value_is_an_error(variables, message):
    variables = {ENDPOINT: "http://c:4318"} | variables
    with pytest.raises(ConfigurationInvalid, match=re.escape(message)) as caught:
        span_recorder(variables, Metrics(), scheme="http")
    assert "secret" not in str(caught.value)


def test_port_of_grpc_is_a_warning(caplog):
    recorder = span_recorder({ENDPOINT: "http://127.0.0.1:4317"}, Metrics(), scheme="http")
    assert recorder is not None
    recorder.close()
    (record,) = caplog.records
    assert record.message == (
        f"{ENDPOINT} has port 4317, at which collectors expect gRPC; OTLP over HTTP has 4318"
    )


def test_right_values_of_every_variable_are_accepted(tmp_path, monkeypatch):
    (tmp_path / "ca.pem").touch()
    right = {
        "ENDPOINT": "https://user:pass@[::1]:4318/base",
        "CERTIFICATE": str(tmp_path / "ca.pem"),
        "COMPRESSION": "gzip",
        "HEADERS": "authorization=Basic%20abc==, x=",
        "PROTOCOL": "http/protobuf",
        "TIMEOUT": "2.5",
    }
    variables = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in right.items()} | {
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "0",
        "OTEL_BSP_SCHEDULE_DELAY": " ",
        "OTEL_SDK_DISABLED": "false",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recorder = span_recorder(variables, Metrics(), scheme="http")
    assert recorder is not None
    recorder.close()


@pytest.mark.parametrize("name", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"])
def test_a_size_of_spaces_is_the_default(name):
    variables = {ENDPOINT: "http://127.0.0.1:4318", name: " "}
    recorder = span_recorder(variables, Metrics(), scheme="http")
    assert recorder is not None
    recorder.close()


def test_every_variable_of_the_sdk_for_spans_is_known():
    from opentelemetry.sdk import environment_variables as sdk

    names = {name for name in dir(sdk) if name.startswith("OTEL")}
    assert misspelt_variables(dict.fromkeys(names, "")) == []
    assert {name for name in names if "TRACES" in name} - VARIABLES == {
        "OTEL_EXPORTER_OTLP_TRACES_INSECURE"  # of gRPC
    }


def test_misspelt_variable_is_named_and_others_are_left_alone():
    others = ("OTEL_NODE_IP", "OTEL_RESOURCE_ATTRIBUTES_POD_NAME", "OTEL_LOGS_EXPORTER", "OTELCOL")
    wrong = {
        "OTEL_EXPORTER_OTLP_ENDPIONT": "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_TRACE_SAMPLER": "OTEL_TRACES_SAMPLER",
        "OTEL_EXPORTER_OLTP_ENDPOINT": "OTEL_EXPORTER_OTLP_ENDPOINT",
    }
    assert misspelt_variables(dict.fromkeys((*others, *wrong), "secret")) == [
        f"unknown environment variable {name} is ignored; did you mean {meant}?"
        for name, meant in sorted(wrong.items())
    ]


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("app.scoring.spans"):
            raise ModuleNotFoundError("No module named 'opentelemetry'", name="opentelemetry")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationInvalid) as caught:
        span_recorder({ENDPOINT: "http://c:4318"}, Metrics(), scheme="http")
    assert str(caught.value) == (
        f"{ENDPOINT} is set, but the Python package opentelemetry is not installed: "
        "pip install -e '.[otel]', or set OTEL_SDK_DISABLED=true; an image has it if otel is among "
        "the EXTRAS that it is built with"
    )


@pytest.mark.slow
def test_server_that_is_stopped_exports_its_last_spans(store, tmp_path):
    with collector() as received:
        variables = {ENDPOINT: received.url, "NO_PROXY": "*", "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        with running_server(store.folder, tmp_path / "log", environment=variables) as server:
            example = httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]
            for _ in range(3):
                httpx.post(f"{server.url}/v1/score", json=example).raise_for_status()
            assert received.posts == 0
            assert server.terminate() == 0
    assert len(received.calls()) == 3
    assert [stage.name for stage in received.stages(received.calls()[0])] == STAGES
