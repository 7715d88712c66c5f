"""Heads that the parser accepts and the server refuses, and heads without an offer to upgrade."""

from http import HTTPStatus

import pytest

from app.server.head_rules import MOST_HEADERS, head_refusal, head_without_upgrade

HOST = (b"host", b"ranking.example.org:8000")


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", [HOST]),
        ("1.1", [(b"host", b" [::1]:8000 ")]),
        ("1.1", [(b"host", b"")]),  # RFC 9112, section 3.2: a target without an authority
        ("1.0", []),
        ("1.1", [HOST, (b"transfer-encoding", b" Chunked ")]),
        ("1.1", [HOST, *[(b"x", b"y")] * (MOST_HEADERS - 1)]),
    ],
)
def test_ordinary_heads_are_accepted(version, headers):
    assert head_refusal(version, headers) is None


@pytest.mark.parametrize(
    ("version", "headers", "status"),
    [
        ("1.1", [], HTTPStatus.BAD_REQUEST),
        ("1.1", [HOST, HOST], HTTPStatus.BAD_REQUEST),
        ("1.0", [HOST, HOST], HTTPStatus.BAD_REQUEST),
        ("1.1", [(b"host", b"a b")], HTTPStatus.BAD_REQUEST),
        ("1.1", [(b"host", b"a/b")], HTTPStatus.BAD_REQUEST),
        ("0.9", [HOST], HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
        ("2.0", [HOST], HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
        ("1.0", [HOST, (b"transfer-encoding", b"chunked")], HTTPStatus.BAD_REQUEST),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")], HTTPStatus.NOT_IMPLEMENTED),
        (
            "1.1",
            [HOST, *[(b"x", b"y")] * MOST_HEADERS],
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
    ],
)
def test_ambiguous_or_excessive_heads_are_refused(version, headers, status):
    assert head_refusal(version, headers) is status


def test_head_without_upgrade_keeps_everything_else():
    offer = [
        HOST,
        (b"connection", b"keep-alive, Upgrade, HTTP2-Settings"),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"),
        (b"content-length", b"2"),
    ]
    assert head_without_upgrade(b"POST", b"/v1/score", "1.1", offer) == (
        b"POST /v1/score HTTP/1.1\r\nhost: ranking.example.org:8000\r\n"
        b"connection: keep-alive\r\ncontent-length: 2\r\n\r\n"
    )
