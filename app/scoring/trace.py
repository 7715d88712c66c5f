"""The trace that a score call is part of (W3C Trace Context, `traceparent`).

A caller that traces sends `traceparent`. The call then is a span of that trace: the log line has
the ids, and the response has a `traceparent` with the id of this span. A header that is not well
formed is ignored, as the recommendation says. `app.scoring.spans` exports the spans, if the
standard variables of OpenTelemetry ask for it.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from app.errors import ConfigurationInvalid, did_you_mean
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:  # it needs the extra `otel`
    from app.scoring.spans import SpanRecorder

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
    found = _TRACEPARENT.fullmatch(value)
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    # Of the flags, only `sampled` has a meaning in version 00.
    flags = f"{int(found[4], 16) & 1:02x}"
    span_id = f"{random.randrange(1, 1 << 64):016x}"  # noqa: S311  (no secret)
    return Trace(found[2].decode(), found[3].decode(), span_id, flags)


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


_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER, _DISABLED = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
_SAMPLER, _SHARE = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_SAMPLERS = ("always_on", "always_off", "traceidratio")


def span_recorder(
    environment: Mapping[str, str], metrics: Metrics, *, scheme: str
) -> "SpanRecorder | None":
    """Return what exports spans, if the `OTEL_…` variables ask for that.

    They do if `OTEL_TRACES_EXPORTER` is `otlp`, or if an endpoint is set and the exporter is not
    `none`. `OTEL_SDK_DISABLED=true` overrides both.

    Raises:
        ConfigurationInvalid: the packages of the extra `otel` are missing, or a variable has a
            value that it cannot have. The SDK would log a warning, and sample every request.
    """
    if environment.get(_DISABLED, "").strip().lower() == "true":
        return None
    exporter = environment.get(_EXPORTER, "").strip()
    asking = next((name for name in (_EXPORTER, *_ENDPOINTS) if environment.get(name)), None)
    if asking is None or exporter == "none":
        return None
    if exporter not in ("", "otlp"):
        meant = did_you_mean(exporter, ["otlp", "none"])
        raise ConfigurationInvalid(f"{_EXPORTER}={exporter}: must be otlp or none{meant}")
    for name in _PROTOCOLS:
        if (protocol := environment.get(name) or "http/protobuf") != "http/protobuf":
            raise ConfigurationInvalid(
                f"{name}={protocol}: must be http/protobuf (port 4318 of a collector)"
            )
    _check_sampler(environment)
    try:
        from app.scoring.spans import SpanRecorder
    except ModuleNotFoundError as error:
        raise ConfigurationInvalid(
            f"{asking} is set, but the Python package {error.name} is not installed: "
            f"pip install -e '.[otel]', or set {_DISABLED}=true"
        ) from error
    try:
        return SpanRecorder(environment, metrics, scheme=scheme)
    except ValueError as error:  # a number that is none, or a queue smaller than a batch
        raise ConfigurationInvalid(f"OTEL_…: {error}") from error


def _check_sampler(environment: Mapping[str, str]) -> None:
    """Check the variables that say which requests are sampled.

    Raises:
        ConfigurationInvalid: one of them has a value that it cannot have.
    """
    known = [*_SAMPLERS, *(f"parentbased_{each}" for each in _SAMPLERS)]
    sampler = environment.get(_SAMPLER, "").strip().lower()
    if sampler and sampler not in known:
        raise ConfigurationInvalid(
            f"{_SAMPLER}={sampler}: must be one of {', '.join(known)}{did_you_mean(sampler, known)}"
        )
    if sampler.endswith("traceidratio"):
        text = environment.get(_SHARE, "")
        try:
            is_share = 0 <= float(text) <= 1
        except ValueError:
            is_share = False
        if not is_share:
            raise ConfigurationInvalid(
                f"{_SHARE}={text}: must be a number between 0 and 1, the share of "
                f"{_SAMPLER}={sampler}"
            )
