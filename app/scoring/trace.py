"""The trace that a score call is part of (W3C Trace Context, `traceparent`).

A caller that traces sends `traceparent`. The call then is a span of that trace: the log line has
the ids, and the response has a `traceparent` with the id of this span. A header that is not well
formed is ignored, as the recommendation says. `app.scoring.spans` exports the spans, if the
variables of `app.scoring.otel` ask for it.
"""

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

# version-trace id-parent id-flags; versions after 00 may have more fields (section 3.2).
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)


class Trace(NamedTuple):
    """A call's place in its caller's trace; all ids are lower-case hexadecimal digits.

    Attributes:
        trace_id: 32 digits, of the whole trace.
        parent_id: 16 digits, of the caller's span; empty if the trace begins here.
        span_id: 16 digits, of this call.
        flags: 2 digits; the lowest bit says that the trace is recorded.
    """

    trace_id: str
    parent_id: str
    span_id: str
    flags: str

    @property
    def header_line(self) -> bytes:
        """The header of the response, with its line end."""
        return f"traceparent: 00-{self.trace_id}-{self.span_id}-{self.flags}\r\n".encode()


def parse_traceparent(value: bytes) -> Trace | None:
    """Return the trace that a header names, with a new span; None if it is not well formed."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None or (match[1] == b"00" and match[5] is not None):
        return None
    # Of the flags, only `sampled` has a meaning in version 00.
    flags = f"{int(match[4], 16) & 1:02x}"
    span_id = f"{random.randrange(1, 1 << 64):016x}"  # noqa: S311  (no secret)
    return Trace(match[2].decode(), match[3].decode(), span_id, flags)


@dataclass(slots=True, eq=False)
class SampledCall:
    """A call whose span is exported when it has ended.

    Attributes:
        name: of the span.
        began_unix_ns: when its head had arrived (Unix time, ns).
        starts: when decoding, queueing and responding began (s after that).
    """

    name: str
    began_unix_ns: int
    starts: tuple[float, float, float] = (0.0, 0.0, 0.0)
