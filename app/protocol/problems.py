"""Errors as HTTP responses: `application/problem+json` (RFC 9457), or the form of the V2 protocol.

A native error body has `type` (`/problems/<slug>`, a page of this server), `title`, `status`,
`detail` and `instance` (the request id). Under `/v2` the body is `{"error": "..."}`, as the Open
Inference Protocol defines it, with the same status and headers.
"""

import orjson

from app.errors import (
    GatehouseError,
    InvalidRequest,
    MethodNotAllowed,
    Unauthorized,
    UnsupportedMediaType,
)

MEDIA_TYPE = "application/problem+json"

ACCEPTED_CODINGS = "gzip, deflate"
"""The content codings that a request body may have, as `accept-encoding` names them."""


def is_v2_path(path: str) -> bool:
    """Return whether errors on this path take the form of the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def error_response(
    error: GatehouseError, *, is_v2: bool, request_id: str
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return the status, the headers and the body of an error response.

    Args:
        error: what went wrong.
        is_v2: whether to write the body as the Open Inference Protocol does.
        request_id: becomes `instance` of a problem document; V2 bodies have no place for it.
    """
    body = _v2_body(error) if is_v2 else _problem_body(error, request_id)
    headers = [
        (b"content-type", b"application/json" if is_v2 else MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        *_headers_of(error),
    ]
    return int(error.status), headers, body


def _problem_body(error: GatehouseError, request_id: str) -> bytes:
    problem: dict[str, object] = {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": int(error.status),
        "detail": str(error),
        "instance": request_id,
    }
    if isinstance(error, InvalidRequest):
        problem["errors"] = [
            {"pointer": problem.pointer, "detail": problem.detail} for problem in error.problems
        ]
    return orjson.dumps(problem)


def _v2_body(error: GatehouseError) -> bytes:
    message = str(error)
    if isinstance(error, InvalidRequest):
        message = "; ".join(map(str, error.problems))
    return orjson.dumps({"error": message})


def _headers_of(error: GatehouseError) -> list[tuple[bytes, bytes]]:
    """Return the headers that a kind of error requires."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, UnsupportedMediaType) and error.is_coding:
        headers.append((b"accept-encoding", ACCEPTED_CODINGS.encode()))
    if isinstance(error, Unauthorized):
        challenge = b' error="invalid_token"' if error.presented else b""
        headers.append((b"www-authenticate", b"Bearer" + challenge))
    return headers
