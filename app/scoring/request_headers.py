"""The headers of a score call: which ones are read, and their values."""

from collections.abc import Iterable

from app.engine.request import Priority
from app.errors import (
    FieldError,
    InvalidRequest,
    MalformedBody,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from app.protocol.dialect import Headers
from app.protocol.validation import LARGEST_TIMEOUT_S
from app.scoring.content_coding import INFLATABLE

PRIORITIES = {
    b"high": Priority.HIGH,
    b"normal": Priority.NORMAL,
    b"low": Priority.LOW,
}

_LONGEST_LENGTH = 18  # digits; Python limits how many it converts
_HUGE = 10**_LONGEST_LENGTH

_READ = frozenset(
    (
        b"accept-encoding",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"inference-header-content-length",
        b"traceparent",
        b"x-request-id",
        b"x-request-priority",
        b"x-request-timeout-ms",
        b"x-routing-key",
    )
)


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers that score calls read, by lower-case name.

    Repeated ones are joined by commas (RFC 9110, section 5.3). None of these headers may be a list,
    so a joined value is refused when it is read.
    """
    read: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            read[name] = value if name not in read else read[name] + b", " + value
    return read


def timeout_s(headers: Headers, default_s: float) -> float:
    """Return the timeout that `x-request-timeout-ms` states (s).

    Raises:
        InvalidRequest: it is not a whole number in range.
    """
    value = headers.get(b"x-request-timeout-ms")
    if value is None:
        return default_s
    largest = int(LARGEST_TIMEOUT_S * 1e3)
    if value.isdigit() and len(value) <= 9 and 0 < int(value) <= largest:
        return int(value) / 1e3
    detail = f"header x-request-timeout-ms must be a whole number from 1 to {largest}"
    raise InvalidRequest([FieldError("", detail)])


def priority(headers: Headers) -> Priority:
    """Return the priority that `x-request-priority` states.

    Raises:
        InvalidRequest: there is no such priority.
    """
    value = headers.get(b"x-request-priority")
    if value is None:
        return Priority.NORMAL
    level = PRIORITIES.get(value.lower())
    if level is None:
        detail = "header x-request-priority must be high, normal or low"
        raise InvalidRequest([FieldError("", detail)])
    return level


def check_body_headers(
    headers: Headers, media_types: frozenset[bytes], max_bytes: int
) -> tuple[int, bytes | None]:
    """Return the length of the body from its header, or 0, and its content coding, if any.

    A request without a content type is accepted (RFC 9110, section 8.3 leaves that to the server):
    parsing the body shows whether it is valid.

    Raises:
        UnsupportedMediaType: the content type or the content coding is not supported.
        MalformedBody: the length is not a number.
        PayloadTooLarge: the length is over `max_bytes`.
    """
    media_type = headers.get(b"content-type")
    if media_type is not None and media_type not in media_types:
        essence = media_type.split(b";", 1)[0].strip().lower()
        if essence not in media_types:
            expected = b" or ".join(sorted(media_types)).decode()
            raise UnsupportedMediaType(f"content-type must be {expected}")
    length = _body_length(headers)
    check_size(length, max_bytes)
    coding = headers.get(b"content-encoding")
    if coding is None:
        return length, None
    coding = coding.strip().lower()
    if coding == b"identity":
        return length, None
    if coding not in INFLATABLE:
        detail = "content-encoding must be gzip, deflate or identity"
        raise UnsupportedMediaType(detail, is_coding=True)
    return length, coding


def _body_length(headers: Headers) -> int:
    """Return the announced length of the body, or 0. This server's parser has checked it before.

    Raises:
        MalformedBody: it is not a number, or there are several.
    """
    value = headers.get(b"content-length", b"0").strip()
    if not value.isdigit():
        raise MalformedBody("header content-length must be one whole number")
    return int(value[-_LONGEST_LENGTH:]) if value[:-_LONGEST_LENGTH].strip(b"0") == b"" else _HUGE


def check_size(size: int, max_bytes: int) -> None:
    """Refuse a body that is too large.

    Raises:
        PayloadTooLarge: `size` is over `max_bytes`.
    """
    if size > max_bytes:
        raise PayloadTooLarge(f"the body is larger than {max_bytes} bytes")
