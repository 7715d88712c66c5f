"""Errors as bytes: a problem document on native paths, `{"error": …}` under /v2."""

import json

import pytest

from app.errors import (
    FieldError,
    GatehouseError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    Overloaded,
    Unauthorized,
    UnsupportedMediaType,
)
from app.protocol.problems import ACCEPTED_CODINGS, error_response, is_v2_path
from app.scoring.content_coding import INFLATABLE

WRONG = InvalidRequest([FieldError("/user/age", "must be a number"), FieldError("", "is wrong")])


@pytest.mark.parametrize("is_v2", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModelNotFound("no"), {}),
        (Overloaded("full", retry_after_s=7), {b"retry-after": b"7"}),
        (MethodNotAllowed("use POST"), {b"allow": b"POST"}),
        (MethodNotAllowed("use GET", allow="GET, HEAD"), {b"allow": b"GET, HEAD"}),
        (UnsupportedMediaType("type"), {}),
        (UnsupportedMediaType("coding", is_coding=True), {b"accept-encoding": b"gzip, deflate"}),
        (Unauthorized("no key"), {b"www-authenticate": b"Bearer"}),
        (
            Unauthorized("wrong key", presented=True),
            {b"www-authenticate": b'Bearer error="invalid_token"'},
        ),
    ],
)
def test_error_has_its_status_and_headers(error: GatehouseError, expected, is_v2):
    status, headers, body = error_response(error, is_v2=is_v2, request_id="id")
    found = dict(headers)
    assert status == error.status
    assert int(found.pop(b"content-length")) == len(body)
    assert found.pop(b"content-type") == (
        b"application/json" if is_v2 else b"application/problem+json"
    )
    assert found == expected


def test_problem_document_lists_every_field_error():
    _, _, body = error_response(WRONG, is_v2=False, request_id="the-id")
    assert json.loads(body) == {
        "type": "/problems/invalid-request",
        "title": WRONG.title,
        "status": 422,
        "detail": "/user/age: must be a number (and 1 more)",
        "instance": "the-id",
        "errors": [
            {"pointer": "/user/age", "detail": "must be a number"},
            {"pointer": "", "detail": "is wrong"},
        ],
    }


def test_v2_error_is_one_message_with_every_field_error():
    _, _, body = error_response(WRONG, is_v2=True, request_id="the-id")
    assert json.loads(body) == {"error": "/user/age: must be a number; is wrong"}
    _, _, body = error_response(ModelNotFound("no such"), is_v2=True, request_id="the-id")
    assert json.loads(body) == {"error": "no such"}


@pytest.mark.parametrize(
    ("path", "is_v2"),
    [("/v2", True), ("/v2/", True), ("/v2/models", True), ("/v20", False), ("/v1/v2", False)],
)
def test_paths_of_the_v2_protocol_are_recognized(path, is_v2):
    assert is_v2_path(path) == is_v2


def test_accepted_codings_are_those_that_bodies_are_read_with():
    assert {f"{coding}".encode() for coding in ACCEPTED_CODINGS.split(", ")} <= set(INFLATABLE)
