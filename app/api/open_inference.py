"""The protocol's routes that a person or a client calls now and then; FastAPI's, unlike infer."""

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.open_inference_metadata import (
    EXTENSIONS,
    Serving,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
)
from app.api.openapi.open_inference import errors
from app.api.openapi.open_inference_schemas import (
    ModelMetadata,
    RepositoryEntry,
    ServerMetadata,
    Statistics,
)
from app.artifacts.loader import Model
from app.errors import (
    ClientDisconnected,
    Draining,
    MalformedBody,
    ModelNotFound,
    NotReady,
    NotSupported,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
    VersionNotFound,
)
from app.protocol.json_body import decode
from app.protocol.open_inference.infer import OpenInference
from app.scoring.body import BodyReader
from app.scoring.service import Service

_MODEL = "/models/{model}"
_VERSION = "/models/{model}/versions/{version}"
_LONGEST_VERSION = 16  # digits
_MOST_VALUES = 1000  # of a question that has one


def routes(
    service: Service, bodies: BodyReader, serving: Serving, *, lane_hang_s: float
) -> APIRouter:
    """Return all of them."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    _add_health(router, service, lane_hang_s)
    _add_metadata(router, service, serving)
    _add_readiness(router, service)
    _add_repository(router, service, bodies)
    _refuse_extensions(router)
    return router


def _add_health(router: APIRouter, service: Service, lane_hang_s: float) -> None:
    def add(path: str, summary: str, check: Callable[[], None]) -> None:
        @router.head(path, include_in_schema=False)
        @router.get(
            path,
            summary=summary,
            operation_id=f"v2{path.replace('/', '_')}",
            response_class=Response,
            responses=errors(Draining, NotReady),
        )
        async def answer() -> Response:
            check()
            return Response()

    def live() -> None:
        if not service.is_alive(lane_hang_s):
            raise NotReady("a lane is stuck")

    add("/health/live", "As /livez", live)
    add("/health/ready", "As /readyz", lambda: _check_ready(service))


def _check_ready(service: Service) -> None:
    if service.draining:
        raise Draining("the server is shutting down")
    if not service.is_ready:
        raise NotReady("no model is active yet")


def _add_metadata(router: APIRouter, service: Service, serving: Serving) -> None:
    def add(path: str, summary: str, answer: Callable[[Model], Any], schema: Any) -> None:  # noqa: ANN401
        """Add a route about the active version, and one about a version by its number."""

        @router.get(
            f"{_MODEL}{path}",
            summary=summary,
            response_model=schema,
            responses=errors(ModelNotFound, NotReady),
        )
        async def of_model(model: str) -> Any:  # noqa: ANN401
            return answer(service.registry.active(model))

        @router.get(
            f"{_VERSION}{path}",
            summary=summary,
            response_model=schema,
            responses=errors(ModelNotFound, VersionNotFound, NotReady),
        )
        async def of_version(model: str, version: str) -> Any:  # noqa: ANN401
            return answer(service.registry.active(model, _number(version)))

    @router.get("", summary="The server, and the extensions that it has")
    async def server() -> ServerMetadata:
        return ServerMetadata(name="gatehouse", version=version("gatehouse"), extensions=EXTENSIONS)

    @router.get("/models/stats", summary="What every model has done since it was loaded")
    async def statistics_of_all() -> Statistics:
        each = [model_statistics(model) for model in service.registry.models()]
        return Statistics(model_stats=each)

    def statistics(model: Model) -> Statistics:
        return Statistics(model_stats=[model_statistics(model)])

    def config(model: Model) -> dict[str, Any]:
        return model_config(model, serving)

    add("", "A model's inputs and outputs", model_metadata, ModelMetadata)
    add("/config", "As Triton's ModelConfig", config, dict[str, Any])
    add("/stats", "What a model has done since it was loaded", statistics, Statistics)


def _add_readiness(router: APIRouter, service: Service) -> None:
    @router.get(
        f"{_MODEL}/ready",
        summary="200 while a model is active",
        response_class=Response,
        responses=errors(ModelNotFound, NotReady, Draining),
    )
    async def model_ready(model: str) -> Response:
        _check_ready(service)
        service.registry.active(model)
        return Response()

    @router.get(
        f"{_VERSION}/ready",
        summary="200 while a version is active",
        response_class=Response,
        responses=errors(ModelNotFound, VersionNotFound, NotReady, Draining),
    )
    async def version_ready(model: str, version: str) -> Response:
        _check_ready(service)
        service.registry.active(model, _number(version))
        return Response()


def _number(version: str) -> int:
    if version.isascii() and version.isdecimal() and len(version) <= _LONGEST_VERSION:
        return int(version)
    raise VersionNotFound("this version of the model is not active")


def _add_repository(router: APIRouter, service: Service, bodies: BodyReader) -> None:
    asked = {"type": "object", "properties": {"ready": {"type": "boolean"}}}

    @router.post(
        "/repository/index",
        summary="Active and refused versions of every model",
        responses=errors(
            MalformedBody, RequestTimeout, PayloadTooLarge, UnsupportedMediaType, Overloaded
        ),
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": asked}}}},
    )
    async def index(request: Request) -> list[RepositoryEntry]:
        try:
            body = await bodies.read(
                request.scope,
                request.receive,
                deadline=math.inf,
                media_types=OpenInference.media_types,
            )
        except ClientDisconnected:
            return []
        document = decode(body, most_values=_MOST_VALUES) if body else {}
        ready = document.get("ready", False) if isinstance(document, dict) else None
        if not isinstance(ready, bool):
            raise MalformedBody("the body must be an object, and its ready true or false")
        return repository_index(service.registry, ready_only=ready)


def _refuse_extensions(router: APIRouter) -> None:
    """Say which of Triton's extensions are not here, instead of a plain 404."""
    refused = {
        "shared memory": ("/systemsharedmemory/{rest:path}", "/cudasharedmemory/{rest:path}"),
        "trace settings": ("/trace/setting", f"{_MODEL}/trace/setting"),
        "log settings": ("/logging",),
        "loading and unloading by a call": (
            "/repository/models/{model}/load",
            "/repository/models/{model}/unload",
        ),
        "generation": (f"{_MODEL}/generate", f"{_MODEL}/generate_stream"),
    }
    for what, paths in refused.items():

        async def refuse(what: str = what) -> None:
            raise NotSupported(f"{what}: not supported by this server")

        for path in paths:
            router.add_api_route(path, refuse, methods=["GET", "POST"], include_in_schema=False)
