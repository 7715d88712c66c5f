"""Schemathesis hooks for rules that the OpenAPI document cannot express."""

import schemathesis

SHORTEST_MS, LONG_MS = 1000, 60_000
LENGTH = "inference-header-content-length"


@schemathesis.hook
def before_call(context, case, kwargs):  # noqa: ARG001  (schemathesis defines the names)
    """Remove header values for which the response is always the same error.

    A deadline that no machine can meet gives 504. A JSON length header that does not match the
    document gives 400.
    """
    stated = str((case.headers or {}).get("x-request-timeout-ms", ""))
    if stated.isdecimal() and 0 < int(stated) < SHORTEST_MS:
        case.headers["x-request-timeout-ms"] = str(LONG_MS)
    if case.media_type == "application/json" and case.headers is not None:
        length = str(case.headers.get(LENGTH, ""))
        if length.isdecimal():
            del case.headers[LENGTH]
