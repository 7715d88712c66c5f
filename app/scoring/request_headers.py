"""The terms of a request, from its headers and its connection."""

from collections.abc import Callable

from starlette.types import Scope

from app.engine.request import Priority, RequestOptions, never_disconnected
from app.errors import FieldError, InvalidRequest
from app.protocol.validation import LARGEST_TIMEOUT_S

IS_DISCONNECTED = "gatehouse.is_disconnected"
"""Where the server's connection puts into a scope how to see that the caller is gone."""

PRIORITIES = {
    b"high": Priority.HIGH,
    b"normal": Priority.NORMAL,
    b"low": Priority.LOW,
}


def terms_of(scope: Scope, default_timeout_s: float, now: float) -> RequestOptions:
    """Read `x-request-timeout-ms` and `x-request-priority`; it runs from `now` (s).

    Raises:
        InvalidRequest: a header breaks its rule.
    """
    timeout_s = default_timeout_s
    priority = Priority.NORMAL
    for name, value in scope["headers"]:
        if name == b"x-request-timeout-ms":
            timeout_s = _timeout_s(value)
        elif name == b"x-request-priority":
            priority = _priority(value)
    is_disconnected: Callable[[], bool] = scope.get(IS_DISCONNECTED, never_disconnected)
    return RequestOptions(now + timeout_s, priority, is_disconnected)


def _timeout_s(value: bytes) -> float:
    if value.isdigit() and len(value) <= 9 and 0 < int(value) <= LARGEST_TIMEOUT_S * 1e3:
        return int(value) / 1e3
    largest = int(LARGEST_TIMEOUT_S * 1e3)
    detail = f"header x-request-timeout-ms must be a whole number from 1 to {largest}"
    raise InvalidRequest([FieldError("", detail)])


def _priority(value: bytes) -> Priority:
    priority = PRIORITIES.get(value.lower())
    if priority is None:
        raise InvalidRequest(
            [FieldError("", "header x-request-priority must be high, normal or low")]
        )
    return priority
