"""Connections that are rude or strange, on a real socket."""

import json
import re
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack

import httpx
import pytest

from tests.support.server import patient_environment, running_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ("--keep-alive-s", "2", "--body-timeout-ms", "1000")
    with running_server(store.folder, log, *flags) as server:
        yield server


def connected(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.fixture
def connection(server):
    with connected(server) as connection:
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


def test_request_to_upgrade_is_served_in_http_1_1(example, connection):
    body = example
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
        env=patient_environment(),
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


def test_many_pipelined_requests_are_all_answered(server, connection):
    last = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 1999 + last)
    received = everything(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 2000
    assert is_fine(server)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_half_closed_connection_is_answered(server, connection, version):
    connection.sendall(b"GET /metrics HTTP/%b\r\nhost: x\r\n\r\n" % version)
    connection.shutdown(socket.SHUT_WR)
    assert b"HTTP/1.1 200 OK\r\n" in everything(connection)
    assert is_fine(server)


def test_some_pipelined_requests_are_answered_in_order(server, connection):
    paths = [b"/livez", b"/nowhere", b"/readyz"]
    heads = [b"GET %b HTTP/1.1\r\nhost: x\r\n" % path for path in paths]
    connection.sendall(b"\r\n".join([*heads[:2], heads[2] + b"connection: close\r\n\r\n"]))
    received = everything(connection)
    answers = [received.index(text) for text in (b"alive\n", b"Not Found", b"ready\n")]
    assert answers == sorted(answers)
    assert is_fine(server)


def test_a_silent_connection_is_closed(server, connection):
    assert everything(connection) == b""
    assert is_fine(server)


def test_connect_is_refused(server, connection):
    connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n")
    assert everything(connection).startswith(b"HTTP/1.1 405 ")
    assert is_fine(server)


def test_bytes_that_are_not_http_are_refused(server, connection):
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
    assert everything(connection).startswith(b"HTTP/1.1 400 ")
    assert is_fine(server)


def test_what_was_refused_before_it_was_a_request_is_counted(server, connection):
    connection.sendall(b"no HTTP\r\n\r\n")
    everything(connection)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'gatehouse_requests_total{model="",route="none",status="400"}' in metrics


HEAD = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture
def example(server):
    return json.dumps(httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]).encode()


def one_answer(connection: socket.socket) -> bytes:
    """The next whole answer; a `100 Continue` before it belongs to it."""
    received = b""
    while True:
        head, end, body = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(
            b"\r\n\r\n"
        )
        length = re.search(rb"content-length: (\d+)", head)
        if end and length is not None and len(body) >= int(length[1]):
            return received
        part = connection.recv(1 << 16)
        assert part, received
        received += part


def test_expect_100_continue_gets_an_interim_response(connection, example):
    connection.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(example))
    assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(example)
    assert one_answer(connection).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"content-length: 16777217", b"413"),
        (b"content-length: 3\r\ncontent-encoding: br", b"415"),
        (b"content-length: 3\r\nx-request-timeout-ms: soon", b"422"),
    ],
    ids=str,
)
def test_who_asks_first_is_refused_before_sending(connection, header, status):
    connection.sendall(HEAD + b"expect: 100-continue\r\n" + header + b"\r\n\r\n")
    assert one_answer(connection).startswith(b"HTTP/1.1 %b " % status)


def test_refused_body_is_skipped_and_its_connection_stays_open(connection, example):
    skipped = b"x" * 100_000
    connection.sendall(HEAD + b"content-encoding: br\r\ncontent-length: 100000\r\n\r\n" + skipped)
    assert one_answer(connection).startswith(b"HTTP/1.1 415 ")
    connection.sendall(HEAD + b"content-length: %d\r\n\r\n%b" % (len(example), example))
    assert one_answer(connection).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_body_in_chunks_is_a_body(connection, example):
    chunks = [example[i : i + 50] for i in range(0, len(example), 50)]
    connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    connection.sendall(b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks))
    connection.sendall(b"0\r\n\r\n")
    assert one_answer(connection).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "rest",
    [
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"content-length: -2\r\n\r\n{}",
        b"content-length: 99999999999999999999999\r\n\r\n{}",
        b"content-length: 2\r\nname without colon\r\n\r\n{}",
        b"transfer-encoding: chunked, gzip\r\n\r\n{}",
    ],
    ids=str,
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(server, connection, rest):
    connection.sendall(HEAD + rest)
    assert one_answer(connection).startswith(b"HTTP/1.1 400 ")
    assert is_fine(server)


@pytest.mark.parametrize(
    "framing", [b"content-length: 100", b"transfer-encoding: chunked"], ids=bytes.decode
)
def test_a_body_that_stops_coming_is_given_up(server, connection, framing):
    connection.sendall(HEAD + framing + b"\r\n\r\n" + b"5\r\n{")
    answer = one_answer(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in answer
    assert is_fine(server)


IN_BETWEEN = [
    (b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n"),  # an empty line
    (b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n", b"a"),  # nobody reads it
    (HEAD + b"content-encoding: br\r\ncontent-length: 100000\r\n\r\n", b"a"),  # it was refused
]


def test_who_stops_in_between_requests_is_not_waited_for(server):
    with ExitStack() as stack:  # all at once: the server waits for each
        connections = [stack.enter_context(connected(server)) for _ in IN_BETWEEN]
        for connection, (request_, more) in zip(connections, IN_BETWEEN, strict=True):
            connection.sendall(request_)
            one_answer(connection)
            connection.sendall(more)
        assert [everything(connection) for connection in connections] == [b"", b"", b""]
    assert is_fine(server)


def test_a_refused_body_without_end_is_cut_off(server, connection):
    connection.sendall(HEAD + b"content-encoding: br\r\ntransfer-encoding: chunked\r\n\r\n")
    assert one_answer(connection).startswith(b"HTTP/1.1 415 ")

    def go_on() -> None:
        for _ in range(200):
            connection.sendall(b"1\r\na\r\n")
            time.sleep(0.05)

    with pytest.raises(ConnectionError):
        go_on()
    assert is_fine(server)
