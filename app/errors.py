"""Every error that a caller can see.

    GatehouseError
    ├── MalformedBody            400  the body is no JSON object
    ├── Unauthorized             401  no key, or none of this server's
    ├── ModelNotFound            404
    ├── VersionNotFound          404
    ├── NotSupported             404  an extension of the protocol that is not here
    ├── MethodNotAllowed         405
    ├── RequestTimeout           408  the body came too slowly
    ├── PayloadTooLarge          413  body or rows over the limit
    ├── UnsupportedMediaType     415
    ├── InvalidRequest           422  what was said is wrong: every problem at once
    ├── Overloaded               429  the queue's row budget is full, or that of bodies
    ├── InferenceFailed          500  the model raised, or gave a wrong shape or a non-finite score
    ├── InternalError            500  a fault of the server's own
    ├── NotReady                 503  no model yet
    ├── Draining                 503  shutting down
    ├── DeadlineUnmeetable       503  the answer would come too late: refused at once
    └── DeadlineExceeded         504  it waited or ran past its deadline

    ClientDisconnected                   nobody is there to be told

    ArtifactInvalid              an artifact cannot be served; seen by operators, not by callers
    ConfigurationInvalid         a setting names what cannot be used; seen by operators too
    └── PoliciesInvalid          a file of ranking policies cannot be followed
    TuningError                  an analysis cannot be done; seen by analysts

The status stands on the class; `slug` names the error in problem documents, in metrics and in
logs. How an error becomes a response body is known to `app.api.problems` alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from http import HTTPStatus
from typing import ClassVar, Literal


class GatehouseError(Exception):
    """An error with an HTTP status; its message is written for the caller.

    `retry_after_s` is when it is worth asking again: whole seconds, as in the header.
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
    """The body is not what its content type says."""

    status = HTTPStatus.BAD_REQUEST
    slug = "malformed-body"
    title = "The body cannot be read"


class Unauthorized(GatehouseError):
    """Scoring needs a key here, and the request has none, or none of this server's."""

    status = HTTPStatus.UNAUTHORIZED
    slug = "unauthorized"
    title = "A key is needed"

    def __init__(self, detail: str, *, presented: bool = False) -> None:
        super().__init__(detail)
        self.presented = presented


class ModelNotFound(GatehouseError):
    """No model of that name is served."""

    status = HTTPStatus.NOT_FOUND
    slug = "model-not-found"
    title = "No such model"


class VersionNotFound(GatehouseError):
    """The model is served, but not in that version."""

    status = HTTPStatus.NOT_FOUND
    slug = "version-not-found"
    title = "No such version"


class NotSupported(GatehouseError):
    """The protocol has such a call as an extension, and this server does not have the extension."""

    status = HTTPStatus.NOT_FOUND
    slug = "not-supported"
    title = "Not supported"


class MethodNotAllowed(GatehouseError):
    """The path exists, but not for this method."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    slug = "method-not-allowed"
    title = "Method not allowed"


class RequestTimeout(GatehouseError):
    """The body did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT
    slug = "request-timeout"
    title = "The body came too slowly"


class PayloadTooLarge(GatehouseError):
    """The body has too many bytes, or the request too many candidates."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    slug = "payload-too-large"
    title = "The request is too large"


class UnsupportedMediaType(GatehouseError):
    """The content type or the content coding is not understood."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    slug = "unsupported-media-type"
    title = "Content type not supported"

    def __init__(self, message: str, *, is_coding: bool = False) -> None:
        super().__init__(message)
        self.is_coding = is_coding


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong in a request: where (RFC 6901 JSON pointer) and which rule."""

    pointer: str
    detail: str


class InvalidRequest(GatehouseError):
    """What the request says is wrong; `errors` lists where, up to 20 places. No value is echoed."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-request"
    title = "The request breaks the model's rules"

    def __init__(self, problems: list[FieldError]) -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{first.pointer or '/'}: {first.detail}{more}")
        self.problems = problems


class Overloaded(GatehouseError):
    """The queue is full, or too many bytes of bodies are on their way."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    slug = "overloaded"
    title = "Too much work is waiting"
    retry_after_s = 1


class InferenceFailed(GatehouseError):
    """The model could not score this request; the cause stands in the log only."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    slug = "inference-failed"
    title = "The model could not score the request"


class InternalError(GatehouseError):
    """A fault of the server's own; the log has the cause under the request's id."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    slug = "internal-error"
    title = "The server failed"


class NotReady(GatehouseError):
    """No model is active yet."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "not-ready"
    title = "No model is ready"
    retry_after_s = 1


class Draining(GatehouseError):
    """The server is shutting down; another replica will answer."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "draining"
    title = "The server is shutting down"
    retry_after_s = 1


class DeadlineUnmeetable(GatehouseError):
    """By what waits already, the answer would come after the deadline; nothing was computed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "deadline-unmeetable"
    title = "The deadline cannot be met"
    retry_after_s = 1


class DeadlineExceeded(GatehouseError):
    """The answer would come after the caller stopped waiting."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    slug = "deadline-exceeded"
    title = "The deadline has passed"


class ClientDisconnected(Exception):
    """The caller closed the connection before its answer; nobody wants one.

    `stage` is where that was found: while its body came (`body`), when its batch was formed
    (`queue`), or when its scores were there (`compute`).
    """

    def __init__(self, stage: Literal["body", "queue", "compute"]) -> None:
        super().__init__(stage)
        self.stage = stage


class ArtifactInvalid(Exception):
    """An artifact cannot be served. The message names the file and the rule that it breaks."""


class ConfigurationInvalid(Exception):
    """A setting names what cannot be used. The message is one line and repeats no secret."""


class PoliciesInvalid(ConfigurationInvalid):
    """A file of ranking policies cannot be followed; `problems` lists every place and rule."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class TuningError(Exception):
    """An analysis cannot be done as asked. The message is one line, written for the analyst."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for the known name most like `name`, or "" if none is near."""
    nearest = get_close_matches(name[:100], known, n=1)  # the time grows with the square of a name
    return f'; did you mean "{nearest[0]}"?' if nearest else ""
