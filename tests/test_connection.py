"""Connections that are rude or strange, on a real socket."""

import json
import shutil
import socket
import subprocess
import time

import httpx
import pytest

from tests.server import clean_environment, running_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with running_server(store.folder, log, "--keep-alive-s", "1") as server:
        yield server


@pytest.fixture
def connection(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What is sent until the other side closes."""
    received = b""
    try:
        while part := connection.recv(1 << 16):
            received += part
    except ConnectionResetError:  # it closed on bytes that it did not read
        pass
    return received


def is_fine(server) -> bool:
    return httpx.get(f"{server.url}/livez").status_code == 200


def test_an_offer_to_upgrade_costs_a_request_nothing(server, connection):
    example = httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]
    body = json.dumps(example).encode()
    connection.sendall(
        b"POST /v1/score HTTP/1.1\r\nhost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body[:30])
    )
    time.sleep(0.05)
    connection.sendall(body[30:])
    first = connection.recv(1 << 16)
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"rank_score"' in first or b'"rank_score"' in connection.recv(1 << 16)
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert everything(connection).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_client_that_prefers_http_2_is_served(server):
    example = httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]
    command = ["curl", "-s", "--http2", f"{server.url}/v1/score", "-d", json.dumps(example)]
    finished = subprocess.run(
        [*command, "-H", "content-type: application/json"],
        capture_output=True,
        env=clean_environment(),
        check=True,
    )
    assert "rank_score" in json.loads(finished.stdout)


def test_a_head_without_end_is_cut_off(server, connection):
    connection.sendall(b"GET / HTTP/1.1\r\nh: ")
    with pytest.raises(ConnectionError):
        connection.sendall(b"a" * (64 << 20))
    assert is_fine(server)


def test_too_many_headers_are_refused(server, connection):
    connection.sendall(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n")
    assert everything(connection).startswith(b"HTTP/1.1 431 ")
    assert is_fine(server)


def test_too_many_pipelined_requests_are_refused(server, connection):
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 2000)
    received = everything(connection)
    assert received.count(b"HTTP/1.1 200 OK") <= 20
    assert is_fine(server)


def test_some_pipelined_requests_are_answered_in_order(server, connection):
    paths = [b"/livez", b"/nowhere", b"/readyz"]
    heads = [b"GET %b HTTP/1.1\r\nhost: x\r\n" % path for path in paths]
    connection.sendall(b"\r\n".join([*heads[:2], heads[2] + b"connection: close\r\n\r\n"]))
    received = everything(connection)
    answers = [received.index(each) for each in (b"alive\n", b"Not Found", b"ready\n")]
    assert answers == sorted(answers)
    assert is_fine(server)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/score HTT"])
def test_a_silent_connection_is_closed(server, connection, sent):
    connection.sendall(sent)
    received = everything(connection)
    assert received == b"" if not sent else received.startswith(b"HTTP/1.1 408 ")
    assert is_fine(server)


def test_connect_is_refused(server, connection):
    connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n")
    assert everything(connection).startswith(b"HTTP/1.1 405 ")
    assert is_fine(server)


def test_no_http_at_all_is_refused(server, connection):
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
    assert everything(connection).startswith(b"HTTP/1.1 400 ")
    assert is_fine(server)
