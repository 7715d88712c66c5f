"""`POST /v1/models/{model}/score`: the hot route, plain ASGI in front of FastAPI's router."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.body import CallerLeft, decode, read_body
from app.api.context import Context, context_of
from app.api.problems import send_problem
from app.api.score_request import ScoreRequest, read_request
from app.api.terms import terms_of
from app.artifacts.loader import Model
from app.artifacts.manifest import Manifest
from app.engine.service import Answer, Service
from app.engine.terms import Terms
from app.errors import GatehouseError, MethodNotAllowed
from app.telemetry.metrics import STAGES, Metrics

ROUTES = {
    "/v1/score": "Score with the default model",
    "/v1/models/{model}/score": "Score with a model",
    "/v1/models/{model}/versions/{version}/score": "Score with one version of a model",
}
_PATH = re.compile(r"/v1/(?:models/(?P<model>[^/]+)/(?:versions/(?P<version>[0-9]{1,9})/)?)?score")
_SERVER_TIMING = ", ".join(f"{stage};dur=%.3f" for stage in STAGES).encode()  # ms


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for at most."""

    max_body_bytes: int
    body_timeout_s: float
    max_candidates: int
    default_timeout_s: float


class ScoreRoutes:
    """Answers score calls and passes every other request on to `app`."""

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics, limits: Limits) -> None:
        """Stand in front of `app`."""
        self._app = app
        self._service = service
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a score call with scores or with a problem document."""
        path = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if path is None:
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        try:
            await self._score(path, context, scope, receive, send)
        except GatehouseError as error:
            context.fields["problem"] = error.slug
            await send_problem(send, error, context.request_id)
        except CallerLeft:
            return

    async def _score(
        self, path: re.Match[str], context: Context, scope: Scope, receive: Receive, send: Send
    ) -> None:
        name, version = path["model"], path["version"]
        context.route = _route(name, version)
        if scope["method"] != "POST":
            raise MethodNotAllowed("score calls are POST requests")
        terms = terms_of(scope, self._limits.default_timeout_s)
        model = self._service.registry.active(name, int(version) if version else None)
        context.model = model.manifest.name
        body = await read_body(
            scope,
            receive,
            max_bytes=self._limits.max_body_bytes,
            timeout_s=self._limits.body_timeout_s,
            deadline=terms.deadline,
        )
        content, stages = await self._answer(model, body, terms, context)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
            (b"server-timing", _server_timing(stages)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(
        self, model: Model, body: bytes, terms: Terms, context: Context
    ) -> tuple[bytes, Mapping[str, float]]:
        """Return the answer to a body, and where its time went (s by stage)."""
        began = time.perf_counter()
        document = decode(body)
        decoded = time.perf_counter()
        request = read_request(
            document,
            model.manifest,
            max_candidates=self._limits.max_candidates,
            vocabularies=model.vocabularies,
        )
        encoded = time.perf_counter()
        answer = await self._service.score(
            model, request.features, request.policy, top_k=request.top_k, terms=terms
        )
        scored = time.perf_counter()
        content = _content(model.manifest, request, answer)
        stages = {
            "decode": decoded - began,
            "encode": encoded - decoded,
            **answer.stages,
            "respond": time.perf_counter() - scored,
        }
        context.fields["candidates"] = request.features.rows
        self._metrics.scored(request.features.rows, stages)
        return content, stages


def _route(name: str | None, version: str | None) -> str:
    if name is None:
        return "/v1/score"
    return f"/v1/models/{{model}}{'/versions/{version}' if version else ''}/score"


def _content(manifest: Manifest, request: ScoreRequest, answer: Answer) -> bytes:
    by_task = np.ascontiguousarray(answer.scores.T)  # [K, n]
    ranking = answer.ranking.tolist()
    if request.keys is not None:
        ranking = [request.keys[position] for position in ranking]
    document = {
        "model": manifest.name,
        "version": manifest.version,
        "scores": dict(zip(manifest.task_names, by_task, strict=True)),
        "rank_score": answer.rank_score,
        "ranking": ranking,
        "policy": {
            "name": request.policy.name,
            "formula": request.policy.formula,
            "weights": request.policy.weights,
        },
    }
    # orjson writes a float32 as the shortest text that reads back as the same float32.
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _server_timing(stages: Mapping[str, float]) -> bytes:
    return _SERVER_TIMING % tuple([stages[stage] * 1e3 for stage in STAGES])
