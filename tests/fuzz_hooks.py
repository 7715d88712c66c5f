"""What schemathesis is told beyond the document: how long an answer may take is no fault."""

import schemathesis

HURRY_MS, PATIENCE_MS = 1000, 60_000


@schemathesis.hook
def before_call(context, case, kwargs):  # noqa: ARG001  (its names are schemathesis')
    """Leave a deadline that no machine could meet out; 504 would be the right answer to it."""
    stated = str((case.headers or {}).get("x-request-timeout-ms", ""))
    if stated.isdecimal() and 0 < int(stated) < HURRY_MS:
        case.headers["x-request-timeout-ms"] = str(PATIENCE_MS)
