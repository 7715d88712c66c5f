"""Every error that a client, an operator or an analyst can see.

    GatehouseError
    ├── MalformedBody            400  the body cannot be parsed
    ├── Unauthorized             401  API key missing or invalid
    ├── ModelNotFound            404
    ├── VersionNotFound          404
    ├── KeyNotFound              404  a table has no such key
    ├── PathNotFound             404
    ├── NotSupported             404  a protocol extension that this server does not implement
    ├── MethodNotAllowed         405
    ├── RequestTimeout           408  the body did not arrive in time
    ├── PayloadTooLarge          413  too many bytes, values or candidates
    ├── UnsupportedMediaType     415  content type or content coding
    ├── InvalidRequest           422  the content is wrong: every problem at once
    ├── Overloaded               429  queue full, or no memory left for request bodies
    ├── InferenceFailed          500  the model raised, or returned a wrong shape or NaN
    ├── InternalError            500  a bug in the server
    ├── NotReady                 503  no active model yet
    ├── Draining                 503  shutting down
    ├── DeadlineUnmeetable       503  refused at once: the estimated time exceeds the deadline
    └── DeadlineExceeded         504  the deadline passed while the request waited or ran

    ClientDisconnected           no response is sent: the connection is closed

    ArtifactInvalid              an artifact cannot be served; operators see it, clients do not
    └── TableIncomplete          files of a table are missing or short: a copy may be under way
    ConfigurationInvalid         a setting cannot be used; operators see it
    └── PoliciesInvalid          a policies file cannot be used
    TuningError                  an analysis cannot be done; analysts see it

The class holds the status; `slug` names the error in problem documents, metrics and logs.
`app.protocol.problems` turns an error into a response.

Error messages and commands share two more things: `did_you_mean`, the suggestion for a misspelt
name, and `ExitCode`.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import ClassVar, Literal

NOTHING_UNKNOWN: Mapping[str, int] = MappingProxyType({})
_LONGEST_NAME = 100  # characters; a longer name is not a typing error, and comparing it is slow
_ALIKE = 0.65  # of difflib's ratio, 0 to 1: "sevre" is 0.8 like "serve", "tokne" 0.6 like "store"


class ExitCode(IntEnum):
    """How a command or a server process ends."""

    OK = 0
    FAILED = 1
    """The command ran, and what it checked or did failed; or the server lost its device."""
    USAGE = 2
    """The command line, a setting, a file or the store cannot be used as it is."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT."""
    PIPE_CLOSED = 141
    """The reader of the output went away: 128 + SIGPIPE."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` most probably misspells, or None."""
    if len(name) > _LONGEST_NAME:
        return None
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=_ALIKE)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message, such as `; did you mean "age_bucket"?`, or an empty string."""
    suggestion = nearest(name, known)
    return "" if suggestion is None else f'; did you mean "{suggestion}"?'


class GatehouseError(Exception):
    """An error with an HTTP status; its message is written for the client.

    `retry_after_s` is the value of the `retry-after` header (whole seconds), or None.
    """

    status: ClassVar[HTTPStatus]
    slug: ClassVar[str]
    title: ClassVar[str]
    retry_after_s: int | None = None

    def __init__(self, detail: str = "", *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        if retry_after_s is not None:
            self.retry_after_s = max(1, retry_after_s)


class MalformedBody(GatehouseError):
    """The body cannot be parsed: it is not valid JSON, or its compression or framing is broken."""

    status = HTTPStatus.BAD_REQUEST
    slug = "malformed-body"
    title = "Malformed body"


class Unauthorized(GatehouseError):
    """Scoring requires an API key, and the request has none or an invalid one."""

    status = HTTPStatus.UNAUTHORIZED
    slug = "unauthorized"
    title = "API key required"

    def __init__(self, detail: str, *, presented: bool = False) -> None:
        super().__init__(detail)
        self.presented = presented


class ModelNotFound(GatehouseError):
    """No active model has this name. `GET /v1/models` lists the active models."""

    status = HTTPStatus.NOT_FOUND
    slug = "model-not-found"
    title = "Model not found"


class VersionNotFound(GatehouseError):
    """The model is active, but this version of it is not loaded."""

    status = HTTPStatus.NOT_FOUND
    slug = "version-not-found"
    title = "Version not found"


class KeyNotFound(GatehouseError):
    """The table of the active version does not have this key, or there is no such table."""

    status = HTTPStatus.NOT_FOUND
    slug = "key-not-found"
    title = "Key not found"


class PathNotFound(GatehouseError):
    """The server has no such path. Paths have no trailing slash; `/docs` lists them all."""

    status = HTTPStatus.NOT_FOUND
    slug = "path-not-found"
    title = "Path not found"


class NotSupported(GatehouseError):
    """The Open Inference Protocol defines this extension; this server does not implement it."""

    status = HTTPStatus.NOT_FOUND
    slug = "not-supported"
    title = "Not supported"


class MethodNotAllowed(GatehouseError):
    """The path exists, but not for this method. The `allow` header lists the methods it has."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    slug = "method-not-allowed"
    title = "Method not allowed"

    def __init__(self, detail: str, *, allow: str = "POST") -> None:
        super().__init__(detail)
        self.allow = allow


class RequestTimeout(GatehouseError):
    """The body did not arrive within the server's time limit for bodies."""

    status = HTTPStatus.REQUEST_TIMEOUT
    slug = "request-timeout"
    title = "Request timeout"


class PayloadTooLarge(GatehouseError):
    """The body has too many bytes or values, or the request too many candidates."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    slug = "payload-too-large"
    title = "Payload too large"


class UnsupportedMediaType(GatehouseError):
    """The server does not read this content type or content coding."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    slug = "unsupported-media-type"
    title = "Unsupported media type"

    def __init__(self, message: str, *, is_coding: bool = False) -> None:
        super().__init__(message)
        self.is_coding = is_coding


@dataclass(frozen=True, slots=True)
class FieldError:
    """One problem of a request: its place (RFC 6901 JSON pointer) and what is wrong there.

    The pointer is empty if the problem is one of the whole body, or of a header or a parameter.
    """

    pointer: str
    detail: str

    def __str__(self) -> str:
        return f"{self.pointer}: {self.detail}" if self.pointer else self.detail


class InvalidRequest(GatehouseError):
    """The request does not fit the model. `errors` lists up to 20 problems; no value is echoed."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-request"
    title = "Invalid request"

    def __init__(
        self, problems: list[FieldError], *, unknown_keys: Mapping[str, int] = NOTHING_UNKNOWN
    ) -> None:
        """List the problems; `unknown_keys` are those that a table lacks, for metrics."""
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = problems
        self.unknown_keys = unknown_keys


class Overloaded(GatehouseError):
    """The queue is full, or request bodies use all the memory reserved for them."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    slug = "overloaded"
    title = "Overloaded"
    retry_after_s = 1


class InferenceFailed(GatehouseError):
    """The model failed on this request; the server's log has the cause."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    slug = "inference-failed"
    title = "Inference failed"


class InternalError(GatehouseError):
    """A bug in the server; its log has the cause under the request id."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    slug = "internal-error"
    title = "Internal server error"


class NotReady(GatehouseError):
    """No model is active yet, or a table of the active one is older than it may be."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "not-ready"
    title = "Not ready"
    retry_after_s = 1


class Draining(GatehouseError):
    """The server is shutting down; send the request to another replica."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "draining"
    title = "Shutting down"
    retry_after_s = 1


class DeadlineUnmeetable(GatehouseError):
    """The estimated time to the response exceeds the deadline; nothing was computed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "deadline-unmeetable"
    title = "Deadline cannot be met"
    retry_after_s = 1


class DeadlineExceeded(GatehouseError):
    """The deadline passed before the response was ready."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    slug = "deadline-exceeded"
    title = "Deadline exceeded"


class ClientDisconnected(Exception):
    """The client closed the connection before its response; none is sent.

    `stage` is where the server noticed: while it received the body (`body`), when it formed the
    batch (`queue`), or when the scores were ready (`compute`).
    """

    def __init__(self, stage: Literal["body", "queue", "compute"]) -> None:
        super().__init__(stage)
        self.stage = stage


class ArtifactInvalid(Exception):
    """An artifact cannot be served. The message names the file and the rule that it breaks."""


class TableIncomplete(ArtifactInvalid):
    """Files of a table are missing or too short. A copy may be under way: try again later."""


class ConfigurationInvalid(Exception):
    """A setting cannot be used. The message is one line and contains no secret."""


class PoliciesInvalid(ConfigurationInvalid):
    """A policies file cannot be used; `problems` lists every place and rule."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class TuningError(Exception):
    """An analysis cannot be done as asked. The message is one line, written for the analyst."""
