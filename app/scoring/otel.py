"""The `OTEL_…` variables: whether they ask for spans, and whether their values can be right.

They are those of OpenTelemetry's specification. The SDK reads them when it makes the exporter: a
wrong value is then an error of Python, a warning that repeats a header, or an exporter that sends
nothing. So they are checked here first.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.errors import ConfigurationInvalid, did_you_mean

if TYPE_CHECKING:  # `gatehouse serve` checks names of variables before it loads these
    from app.scoring.spans import SpanRecorder
    from app.telemetry.metrics import Metrics

logger = logging.getLogger("app")

_EXPORTER, _DISABLED = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
_SAMPLER, _SHARE = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_DEFAULT_QUEUE, _DEFAULT_BATCH = 2048, 512  # spans; the specification's
_OTLP = "OTEL_EXPORTER_OTLP_"
_GRPC_PORT = 4317
_CODINGS = ("none", "gzip", "deflate")

_PER_SIGNAL = (
    "CERTIFICATE",
    "CLIENT_CERTIFICATE",
    "CLIENT_KEY",
    "COMPRESSION",
    "ENDPOINT",
    "HEADERS",
    "PROTOCOL",
    "TIMEOUT",
)
_COUNTS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
_SIZES = ("OTEL_BSP_EXPORT_TIMEOUT", _BATCH, _QUEUE, "OTEL_BSP_SCHEDULE_DELAY")
_RESOURCE = "OTEL_RESOURCE_ATTRIBUTES"

VARIABLES = frozenset(
    (
        *(f"{_OTLP}{setting}" for setting in _PER_SIGNAL),
        *(f"{_OTLP}TRACES_{setting}" for setting in _PER_SIGNAL),
        *_COUNTS,
        *_SIZES,
        *(_DISABLED, _EXPORTER, _RESOURCE, _SAMPLER, _SHARE),
        *("OTEL_SERVICE_NAME", "OTEL_PROPAGATORS", "OTEL_LOG_LEVEL"),
    )
)
"""The variables that say what happens to spans."""

_OTHERS = frozenset(
    ("BLRP", "INSECURE", "LOGRECORD", "LOGS", "METRIC", "METRICS", "PROMETHEUS", "PYTHON", "ZIPKIN")
)
"""Parts of names that are for other signals, exporters and programs."""
_ALIKE = 0.9  # of difflib's ratio


def span_recorder(
    environment: Mapping[str, str], metrics: "Metrics", *, scheme: str
) -> "SpanRecorder | None":
    """Return what exports spans, if the `OTEL_…` variables ask for that.

    They do if `OTEL_TRACES_EXPORTER` is `otlp`, or if an endpoint is set and the exporter is not
    `none`. `OTEL_SDK_DISABLED=true` overrides both.

    Raises:
        ConfigurationInvalid: the packages of the extra `otel` are missing, or a variable has a
            value that it cannot have.
    """
    asking = _asking(environment)
    if asking is None:
        return None
    for check in (_check_exporter, _check_sampler, _check_numbers, _check_lists):
        check(environment)
    try:
        from app.scoring.spans import SpanRecorder

        return SpanRecorder(environment, metrics, scheme=scheme)
    except ModuleNotFoundError as error:
        raise ConfigurationInvalid(
            f"{asking} is set, but the Python package {error.name} is not installed: "
            f"pip install -e '.[otel]', or set {_DISABLED}=true; an image has it if otel is among "
            "the EXTRAS that it is built with"
        ) from error
    except ValueError as error:  # a variable of the SDK's own
        raise ConfigurationInvalid(f"OTEL_…: {error}") from error


def misspelt_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each variable whose name is almost one that says what happens to spans.

    Others may be for other programs, or for other signals.
    """
    lines = []
    for name in sorted(environment):
        if not name.startswith("OTEL") or name in VARIABLES:
            continue
        if _extends_a_variable(name) or _OTHERS & set(name.split("_")):
            continue
        meant = max(VARIABLES, key=lambda known, name=name: _likeness(name, known))  # type: ignore[misc]
        if _likeness(name, meant) >= _ALIKE:
            lines.append(f"unknown environment variable {name} is ignored; did you mean {meant}?")
    return lines


def _extends_a_variable(name: str) -> bool:
    """Whether a name is a known one and more, such as OTEL_RESOURCE_ATTRIBUTES_POD_NAME."""
    return any(name.startswith(f"{variable}_") for variable in VARIABLES)


def _likeness(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other, autojunk=False).ratio()


def _asking(environment: Mapping[str, str]) -> str | None:
    """Return the variable that asks for spans; None if none does, or another one forbids it."""
    names = (_EXPORTER, f"{_OTLP}TRACES_ENDPOINT", f"{_OTLP}ENDPOINT")
    asking = next((name for name in names if environment.get(name)), None)
    if asking is None or environment.get(_EXPORTER, "").strip() == "none":
        return None
    disabled = environment.get(_DISABLED, "").strip().lower()
    if disabled not in ("", "true", "false"):
        hint = did_you_mean(disabled, ["true", "false"])
        raise ConfigurationInvalid(f"{_DISABLED}={disabled}: must be true or false{hint}")
    return None if disabled == "true" else asking


def _of_signal(environment: Mapping[str, str], what: str) -> Iterator[tuple[str, str]]:
    """Return the variables of the exporter that are set, with their values."""
    for name in (f"{_OTLP}TRACES_{what}", f"{_OTLP}{what}"):
        if value := environment.get(name, "").strip():
            yield name, value


def _check_exporter(environment: Mapping[str, str]) -> None:
    exporter = environment.get(_EXPORTER, "").strip()
    if exporter not in ("", "otlp"):
        meant = did_you_mean(exporter, ["otlp", "none"])
        raise ConfigurationInvalid(f"{_EXPORTER}={exporter}: must be otlp or none{meant}")
    for name, protocol in _of_signal(environment, "PROTOCOL"):
        if protocol != "http/protobuf":
            raise ConfigurationInvalid(
                f"{name}={protocol}: must be http/protobuf (port 4318 of a collector)"
            )
    for name, endpoint in _of_signal(environment, "ENDPOINT"):
        _check_endpoint(name, endpoint)
    for name, coding in _of_signal(environment, "COMPRESSION"):
        if coding.lower() not in _CODINGS:
            hint = did_you_mean(coding.lower(), _CODINGS)
            raise ConfigurationInvalid(f"{name}={coding}: must be none, gzip or deflate{hint}")
    for what in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
        for name, path in _of_signal(environment, what):
            if not Path(path).is_file():
                raise ConfigurationInvalid(f"{name}={path}: no such file")


def _check_endpoint(name: str, endpoint: str) -> None:
    """Check a URL. Its message does not repeat it if it may have a password."""
    try:
        url = urlsplit(endpoint)
        is_url = url.scheme in ("http", "https") and bool(url.hostname)
        port = url.port
    except ValueError:  # no port, or no IPv6 address
        is_url, port = False, None
    if not is_url:
        shown = "" if "@" in endpoint else f"={endpoint}"
        example = "http://collector:4318"
        if "://" not in endpoint and ":" in endpoint and "@" not in endpoint:
            example = f"http://{endpoint}"
        raise ConfigurationInvalid(f"{name}{shown}: must be a URL, such as {example}")
    if port == _GRPC_PORT:
        logger.warning(
            "%s has port %d, at which collectors expect gRPC; OTLP over HTTP has 4318", name, port
        )


def _check_sampler(environment: Mapping[str, str]) -> None:
    known = [*_SAMPLERS, *(f"parentbased_{sampler}" for sampler in _SAMPLERS)]
    sampler = environment.get(_SAMPLER, "").strip().lower()
    if sampler and sampler not in known:
        raise ConfigurationInvalid(
            f"{_SAMPLER}={sampler}: must be one of {', '.join(known)}{did_you_mean(sampler, known)}"
        )
    if sampler.endswith("traceidratio"):
        share = f"must be a number between 0 and 1, the share of {_SAMPLER}={sampler}"
        _check_number(_SHARE, environment.get(_SHARE, ""), float, share, least=0, most=1)


def _check_numbers(environment: Mapping[str, str]) -> None:
    for name, timeout in _of_signal(environment, "TIMEOUT"):
        _check_number(name, timeout, float, "must be a number of seconds above 0", least=1e-3)
    for names, least in ((_COUNTS, 0), (_SIZES, 1)):
        for name in names:
            if text := environment.get(name, "").strip():
                rule = f"must be an integer of {least} or more"
                _check_number(name, text, int, rule, least=least)
    queue = int(environment.get(_QUEUE, "").strip() or _DEFAULT_QUEUE)
    batch = int(environment.get(_BATCH, "").strip() or _DEFAULT_BATCH)
    if batch > queue:
        raise ConfigurationInvalid(
            f"{_BATCH} ({batch}) must be at most {_QUEUE} ({queue}); set both"
        )


def _check_number(
    name: str,
    text: str,
    kind: Callable[[str], float],
    rule: str,
    *,
    least: float,
    most: float = float("inf"),
) -> None:
    try:
        is_right = least <= kind(text) <= most
    except ValueError:
        is_right = False
    if not is_right:
        raise ConfigurationInvalid(f"{name}={text}: {rule}")


def _check_lists(environment: Mapping[str, str]) -> None:
    """Check lists of pairs. Headers may be secrets, so no message repeats them."""
    lists = [*_of_signal(environment, "HEADERS")]
    if attributes := environment.get(_RESOURCE, "").strip():
        lists.append((_RESOURCE, attributes))
    for name, text in lists:
        for position, pair in enumerate(text.split(","), 1):
            key, equals, _ = pair.partition("=")
            if pair.strip() and not (key.strip() and equals):
                raise ConfigurationInvalid(
                    f"{name}: item {position} is not name=value; items are separated by commas"
                )
