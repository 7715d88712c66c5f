"""A score call: its path, its head, the client that gets the response, and how far it is."""

from dataclasses import dataclass
from typing import Protocol

from app.artifacts.loader import Model
from app.engine.request import Priority
from app.lifecycle.comparison import Comparison
from app.protocol.dialect import Dialect, Headers, ParsedRequest
from app.ranking.policies import ModelPolicies
from app.scoring.trace import SampledCall, Trace
from app.scoring.traffic_recorder import Recording


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one request."""

    max_candidates: int
    max_body_bytes: int
    default_timeout_s: float


@dataclass(frozen=True, slots=True)
class Route:
    """A path of score calls: its dialect, its template, and the model and version in it."""

    dialect: Dialect
    template: str
    model: str | None
    version: int | None


@dataclass(slots=True, eq=False)
class CallHead:
    """The content of a call's head. A transport may reuse it for a request with the same head.

    Attributes:
        headers: those that score calls read.
        timeout_s: counted from the request's arrival.
        priority: which requests run first.
        length: of the body as the head states it (bytes), or 0.
        coding: the content coding of the body.
    """

    headers: Headers
    timeout_s: float
    priority: Priority
    length: int
    coding: bytes | None


class Client(Protocol):
    """The client of a call, as its transport presents it."""

    def is_disconnected(self) -> bool:
        """Whether it has closed the connection; called on the event loop."""

    def respond(self, status: int, head: bytes, body: bytes, *, closes: bool) -> None:
        """Send the response. Called once, on the event loop, unless `abandon` is.

        Args:
            status: the status code.
            head: header lines, each with its line end; among them `content-length`.
            body: the content.
            closes: whether the connection closes afterwards, as the head says.
        """

    def abandon(self) -> None:
        """Send nothing: the client is gone."""


@dataclass(slots=True, eq=False)
class ScoreCall:
    """One score call; owned by the event loop.

    Attributes:
        route: of its path.
        method: the HTTP method.
        client: gets the response.
        request_id: its `x-request-id`, or a new one.
        began: `time.perf_counter()` when its head had arrived (s).
        arrival: `time.monotonic()` at the same time (s).
        head: the content of its head, once that is checked.
        deadline: clock time (s) after which the response is worthless.
        model: the version that scores it.
        policies: the model's policies, all of one policy set.
        key: the name of its API key, or empty.
        parsed: its body.
        decode_s: how long parsing its body took.
        encode_s: how long encoding its features took.
        is_done: whether it has its response.
        is_assigned: whether it was assigned to a canary or to the active version beside it.
        compared: the comparison that uses this call, and the call's body.
        trace: its place in a trace, if the caller names one or the call is sampled.
        span: if its span is exported.
        recording: what of it is recorded, if it is.
    """

    route: Route
    method: str
    client: Client
    request_id: str
    began: float
    arrival: float
    head: CallHead | None = None
    deadline: float = 0.0
    model: Model | None = None
    policies: ModelPolicies | None = None
    key: str = ""
    parsed: ParsedRequest | None = None
    decode_s: float = 0.0
    encode_s: float = 0.0
    is_done: bool = False
    is_assigned: bool = False
    compared: tuple[Comparison, bytes] | None = None
    trace: Trace | None = None
    span: SampledCall | None = None
    recording: Recording | None = None
