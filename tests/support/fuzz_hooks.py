"""What schemathesis is told beyond the document: what two of its parts must have to do together."""

import schemathesis

HURRY_MS, PATIENCE_MS = 1000, 60_000
LENGTH = "inference-header-content-length"


@schemathesis.hook
def before_call(context, case, kwargs):  # noqa: ARG001  (its names are schemathesis')
    """Leave out what would make every answer the same.

    A deadline that no machine can meet is rightly answered with 504, and a length of the JSON
    document that is not its length with 400.
    """
    stated = str((case.headers or {}).get("x-request-timeout-ms", ""))
    if stated.isdecimal() and 0 < int(stated) < HURRY_MS:
        case.headers["x-request-timeout-ms"] = str(PATIENCE_MS)
    if case.media_type == "application/json" and case.headers is not None:
        length = str(case.headers.get(LENGTH, ""))
        if length.isdecimal():
            del case.headers[LENGTH]
