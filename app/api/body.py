"""Reading a request's body within its limits: type before bytes, bytes before parsing."""

import asyncio
import json
from contextlib import suppress

import orjson
from starlette.types import Receive, Scope

from app.errors import (
    DeadlineExceeded,
    MalformedBody,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

JSON = frozenset((b"application/json",))


class CallerLeft(Exception):
    """The caller closed the connection before its request was whole; nobody wants an answer."""


async def read_body(
    scope: Scope,
    receive: Receive,
    *,
    max_bytes: int,
    timeout_s: float,
    deadline: float,
    media_types: frozenset[bytes] = JSON,
) -> bytes:
    """Return a request's whole body.

    Args:
        scope: of the request.
        receive: of the request.
        max_bytes: a larger body is refused.
        timeout_s: how long the body may take.
        deadline: loop time (s) after which no answer is wanted.
        media_types: what the content type may be; it may be absent, too.

    Raises:
        UnsupportedMediaType: the content type is none of them, or the content is encoded.
        PayloadTooLarge: it is larger than `max_bytes`; refused while it is read, or before.
        RequestTimeout: it took longer than `timeout_s`.
        DeadlineExceeded: the deadline came first.
        CallerLeft: the connection closed.
    """
    _check_headers(scope, max_bytes, media_types)
    loop = asyncio.get_running_loop()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout_at(min(deadline, loop.time() + timeout_s)):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise CallerLeft
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > max_bytes:
                    raise PayloadTooLarge(f"the body is larger than {max_bytes} bytes")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        if loop.time() >= deadline:
            raise DeadlineExceeded("the body was not there before the deadline") from None
        raise RequestTimeout(f"the body took longer than {timeout_s:g} s") from None


def decode(body: bytes) -> object:
    """Parse JSON.

    NaN and Infinity are no JSON, but what Python and JavaScript write by mistake: they are read,
    so that the check of the features can say where they stand.

    Raises:
        MalformedBody: the body is not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" in body or b"Infinity" in body:
            with suppress(ValueError, TypeError, RecursionError):
                document: object = json.loads(body)
                orjson.dumps(document)  # a name or a key that it cannot write cannot be answered
                return document
        at = f"line {error.lineno} column {error.colno}"
        raise MalformedBody(f"the body is not JSON: {error.msg.split(':')[0]}, {at}") from None


def _check_headers(scope: Scope, max_bytes: int, media_types: frozenset[bytes]) -> None:
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value.split(b";", 1)[0].strip().lower()
            if media_type not in media_types:
                known = b" or ".join(sorted(media_types)).decode()
                raise UnsupportedMediaType(f"content-type must be {known}")
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise UnsupportedMediaType("content-encoding must be identity")
        elif name == b"content-length" and int(value) > max_bytes:
            raise PayloadTooLarge(f"the body is larger than {max_bytes} bytes")
