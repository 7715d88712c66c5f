"""Scoring calls, such as `POST /v1/models/{model}/score`: the hot routes.

They are plain ASGI in front of FastAPI's router. What a call is written in, how it is read and how
its answer is written, is a `Dialect`; the life of a call is the same for all of them.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from app.artifacts.loader import Model
from app.engine.request import RequestFeatures, RequestOptions
from app.errors import ClientDisconnected, DeadlineExceeded, GatehouseError, MethodNotAllowed
from app.ranking.policies import ModelPolicies
from app.ranking.ranker import RankingOptions
from app.scoring.body import BodyReader
from app.scoring.content_coding import encoded
from app.scoring.context import Context, context_of, send_error
from app.scoring.keys import Keys
from app.scoring.request_headers import terms_of
from app.scoring.service import Answer, Service
from app.telemetry.metrics import GPU_STAGES, STAGES, Metrics

Headers = Sequence[tuple[bytes, bytes]]

_SERVER_TIMING, _GPU_SERVER_TIMING = (
    ", ".join(f"{stage};dur=%.3f" for stage in stages).encode()  # ms
    for stages in (STAGES, GPU_STAGES)
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for at most."""

    max_candidates: int
    default_timeout_s: float


@dataclass(frozen=True, slots=True)
class Call:
    """A scoring call, but for its body.

    Attributes:
        model: who scores.
        rankers: the model's policies, of one policy set.
        headers: of the request, names in lower case.
        limits: what it may ask for.
        terms: what its headers say of them.
        arrival: loop time (s) of its coming.
    """

    model: Model
    rankers: ModelPolicies
    headers: Headers
    limits: Limits
    terms: RequestOptions
    arrival: float


class Request(Protocol):
    """What every dialect's request comes down to, checked."""

    @property
    def features(self) -> RequestFeatures:
        """The user's and the candidates' columns."""

    @property
    def wanted(self) -> RankingOptions:
        """How the candidates are to be ranked."""


class Dialect(Protocol):
    """What a scoring call is written in; `decode`, `read` and `write` are its stages in order."""

    path: re.Pattern[str]
    """Of its calls; the groups `model` and `version` may be empty."""
    media_types: frozenset[bytes]
    """What a body may be."""

    def route(self, name: str | None, version: str | None) -> str:
        """Return the template of a path."""

    def decode(self, body: bytes, call: Call) -> Any:  # noqa: ANN401  (only `read` looks inside)
        """Parse a body.

        Raises:
            MalformedBody: it cannot be parsed.
        """

    def read(self, document: Any, call: Call) -> tuple[Request, RequestOptions]:  # noqa: ANN401
        """Check what was parsed, turn its features into columns, and say what terms it states.

        Raises:
            InvalidRequest: with every problem (the first 20).
            PayloadTooLarge: there are too many candidates.
        """

    def write(self, request: Any, answer: Answer, call: Call) -> tuple[Headers, bytes]:  # noqa: ANN401
        """Return the answer's headers, without its length, and its body."""


class ScoreRoutes:
    """Answers scoring calls and passes every other request on to `app`."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        metrics: Metrics,
        bodies: BodyReader,
        limits: Limits,
        keys: Keys,
        dialects: Sequence[Dialect],
    ) -> None:
        """Stand in front of `app` for the calls of some dialects."""
        self._app = app
        self._service = service
        self._metrics = metrics
        self._bodies = bodies
        self._limits = limits
        self._keys = keys
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scoring call with scores or with an error."""
        if scope["type"] == "http":
            for dialect in self._dialects:
                path = dialect.path.fullmatch(scope["path"])
                if path is not None:
                    await self._answer_or_refuse(dialect, path, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _answer_or_refuse(
        self, dialect: Dialect, path: re.Match[str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        context = context_of(scope)
        try:
            await self._score(dialect, path, context, scope, receive, send)
        except GatehouseError as error:
            context.fields["problem"] = error.slug
            await send_error(send, scope, error)
        except ClientDisconnected as left:
            context.fields["left"] = left.stage
            self._metrics.cancelled(left.stage)

    async def _score(
        self,
        dialect: Dialect,
        path: re.Match[str],
        context: Context,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        name, version = path["model"], path["version"]
        context.route = dialect.route(name, version)
        if scope["method"] != "POST":
            raise MethodNotAllowed("method not allowed; use POST")
        context.key = self._keys.caller(scope["headers"])
        arrival = time.monotonic()  # the loop's time, without asking which loop it is
        terms = terms_of(scope, self._limits.default_timeout_s, arrival)
        model = self._service.registry.active(name, int(version) if version else None)
        context.model = model.manifest.name
        rankers = self._service.policies.of(model)
        call = Call(model, rankers, scope["headers"], self._limits, terms, arrival)
        try:
            headers, content, stages = await self._answer(
                dialect,
                call,
                await self._bodies.read(
                    scope,
                    receive,
                    deadline=terms.deadline,
                    media_types=dialect.media_types,
                    admit=partial(self._service.admit_unread, model, terms),
                ),
                context,
            )
        except GatehouseError:
            model.usage.fail(time.perf_counter() - context.began)
            raise
        content, coding_headers = await encoded(content, scope["headers"])
        headers = [
            *headers,
            *coding_headers,
            (b"content-length", b"%d" % len(content)),
            (b"server-timing", _server_timing(stages)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(
        self, dialect: Dialect, call: Call, body: bytes, context: Context
    ) -> tuple[Headers, bytes, Mapping[str, float]]:
        """Return the answer to a body, and where its time went (s by stage)."""
        began = time.perf_counter()
        document = dialect.decode(body, call)
        decoded = time.perf_counter()
        request, terms = dialect.read(document, call)
        encoded = time.perf_counter()
        size = len(body)
        del body, document  # they can be megabytes, and the request is going to wait
        answer = await self._service.score(
            call.model, request.features, request.wanted, terms=terms
        )
        scored = time.perf_counter()
        headers, content = dialect.write(request, answer, call)
        if time.monotonic() > terms.deadline:  # ranking and writing took the rest of its time
            self._metrics.shed(DeadlineExceeded.slug)
            raise DeadlineExceeded("the answer was not ready before the deadline")
        stages = {
            "decode": decoded - began,
            "encode": encoded - decoded,
            **answer.stages,
            "respond": time.perf_counter() - scored,
        }
        context.fields["candidates"] = request.features.rows
        self._service.learn_size(call.model, size, request.features.rows)
        self._metrics.scored(request.features.rows, stages)
        duration_s = time.perf_counter() - context.began  # the loop's own time has milliseconds
        call.model.usage.succeed(request.features.rows, duration_s, stages)
        return headers, content, stages


def _server_timing(stages: Mapping[str, float]) -> bytes:
    if "copy_in" in stages:
        return _GPU_SERVER_TIMING % tuple([stages[stage] * 1e3 for stage in GPU_STAGES])
    return _SERVER_TIMING % tuple([stages[stage] * 1e3 for stage in STAGES])
