"""Callers that close their connection before they are answered, on real sockets."""

import json
import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.artifacts.publish import publish
from app.artifacts.store import Store
from tests.support.server import running_server
from tests.support.slow import DAWDLES, slow_module
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def send(url, numbers, padding=0):
    """Send a request and return its connection, the answer unread."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(message(numbers, padding))
    return connection


def message(numbers, padding=0):
    body = json.dumps({"candidates": {"x": numbers}}).encode() + b" " * padding
    head = b"POST /v1/score HTTP/1.1\r\nhost: gatehouse\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def idle_lanes(url):
    return httpx.get(f"{url}/v1/engine").json()["idle_lanes"]


def cancelled(url):
    text = httpx.get(f"{url}/metrics").text
    return {
        sample.labels["stage"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "gatehouse_cancelled_total"
    }


def test_work_for_a_caller_that_left_is_dropped_and_counted_by_stage(tmp_path):
    publish(Store(tmp_path / "store"), *slow_module())
    flags = ("--lanes", "1", "--request-timeout-ms", "60000")
    with running_server(tmp_path / "store", tmp_path / "log", *flags) as server:
        assert cancelled(server.url) == {"body": 0, "queue": 0, "compute": 0}
        running = send(server.url, [DAWDLES])
        wait_until(lambda: idle_lanes(server.url) == 0)
        send(server.url, [1, 2, 3]).close()
        staying = send(server.url, [4, 5.5])
        assert b"200 OK" in running.recv(4096)
        assert b"200 OK" in staying.recv(4096)
        assert cancelled(server.url) == {"body": 0, "queue": 1, "compute": 0}
        leaver = send(server.url, [DAWDLES])
        wait_until(lambda: idle_lanes(server.url) == 0)
        leaver.close()
        wait_until(lambda: cancelled(server.url) == {"body": 0, "queue": 1, "compute": 1})
        running.close()
        staying.close()


@pytest.mark.parametrize("padding", [100_000, 1_000_000])
def test_client_may_disconnect_after_a_large_body(tmp_path, padding):
    publish(Store(tmp_path / "store"), *slow_module())
    flags = ("--lanes", "1", "--request-timeout-ms", "60000")
    with running_server(tmp_path / "store", tmp_path / "log", *flags) as server:
        running = send(server.url, [DAWDLES])
        wait_until(lambda: idle_lanes(server.url) == 0)
        leaver = send(server.url, [1, 2, 3], padding)
        wait_until(lambda: httpx.get(f"{server.url}/v1/engine").json()["queued_rows"] == 3)
        leaver.close()
        assert b"200 OK" in running.recv(4096)
        wait_until(lambda: cancelled(server.url)["queue"] == 1)
        running.close()


def test_client_may_disconnect_with_several_requests_in_flight(tmp_path):
    publish(Store(tmp_path / "store"), *slow_module())
    flags = ("--lanes", "1", "--request-timeout-ms", "60000")
    with running_server(tmp_path / "store", tmp_path / "log", *flags) as server:
        leaver = send(server.url, [1, 2, 3])
        leaver.sendall(message([DAWDLES]) + message([4]))
        assert b"200 OK" in leaver.recv(4096)
        wait_until(lambda: idle_lanes(server.url) == 0)
        leaver.close()
        # The slow request is dropped after it was computed; or the one behind it in the queue, if
        # this process was slow itself and the first one was answered already.
        wait_until(lambda: cancelled(server.url)["compute"] + cancelled(server.url)["queue"] >= 1)
        assert '"level": "error"' not in server.log.read_text()
