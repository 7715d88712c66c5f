"""The V2 protocol's routes other than infer, which is in `app.protocol.open_inference`.

They return health, metadata, configuration and statistics, as the Open Inference Protocol and
Triton's extensions define them.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any

from fastapi import APIRouter, Request

from app.api.openapi.open_inference import errors
from app.api.openapi.open_inference_schemas import (
    Duration,
    InferenceStatistics,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    RepositoryEntry,
    ServerLive,
    ServerMetadata,
    ServerReady,
    Statistics,
    TensorMetadata,
)
from app.artifacts.inputs import IdInput, Input
from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES, ModelTables
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
from app.protocol.open_inference.outputs import output_names
from app.protocol.open_inference.tensor_data import datatypes_of
from app.scoring.body import BodyReader
from app.scoring.call import Limits
from app.scoring.request_headers import check_body_headers, read_headers
from app.scoring.service import Service
from app.telemetry.metrics import Metrics

EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository(index)",
    "parameters",
    "schedule_policy",
    "statistics",
]
"""Triton's extensions that this server implements."""

PLATFORM = "pytorch_libtorch"
_CONFIG_TYPES = {"FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "BYTES": "TYPE_STRING"}

_MODEL = "/models/{model}"
_VERSION = "/models/{model}/versions/{version}"
_LONGEST_VERSION = 16  # digits
_MOST_VALUES = 1000  # in the body of /repository/index


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """The server's settings that a model configuration shows."""

    limits: Limits
    max_batch_rows: int
    max_wait_s: float
    lanes: int


def routes(
    service: Service,
    bodies: BodyReader,
    metrics: Metrics,
    serving: ServingSettings,
    *,
    lane_hang_s: float,
) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    _add_health(router, service, lane_hang_s)
    _add_metadata(router, service, metrics, serving)
    _add_readiness(router, service)
    _add_repository(router, service, bodies, serving)
    _refuse_extensions(router)
    return router


def _add_health(router: APIRouter, service: Service, lane_hang_s: float) -> None:
    @router.get(
        "/health/live",
        summary="200 while the event loop and every lane respond, as /livez",
        operation_id="v2_health_live",
        responses=errors(NotReady),
    )
    async def live() -> ServerLive:
        if not service.is_alive(lane_hang_s):
            raise NotReady("a lane is stuck")
        return ServerLive(live=True)

    @router.get(
        "/health/ready",
        summary="200 while the server accepts requests, as /readyz",
        operation_id="v2_health_ready",
        responses=errors(Draining, NotReady),
    )
    async def ready() -> ServerReady:
        service.readiness.check()
        return ServerReady(ready=True)


def _add_metadata(
    router: APIRouter, service: Service, metrics: Metrics, serving: ServingSettings
) -> None:
    def metadata(model: Model) -> ModelMetadata:
        loaded = service.registry.versions(model.manifest.name)
        versions = [version.manifest.version for version in loaded]
        return model_metadata(model, versions, service.registry.tables.get(model, NO_TABLES))

    def add(path: str, summary: str, describe: Callable[[Model], Any], schema: Any) -> None:  # noqa: ANN401
        """Add a route for the active version, and one for a version by its number."""

        @router.get(
            f"{_MODEL}{path}",
            summary=summary,
            response_model=schema,
            responses=errors(ModelNotFound, NotReady),
        )
        async def of_model(model: str) -> Any:  # noqa: ANN401
            return describe(service.registry.active(model))

        @router.get(
            f"{_VERSION}{path}",
            summary=summary,
            response_model=schema,
            responses=errors(ModelNotFound, VersionNotFound, NotReady),
        )
        async def of_version(model: str, version: str) -> Any:  # noqa: ANN401
            return describe(service.registry.requested(model, _number(version)))

    @router.get("", summary="Server name, version and extensions")
    async def server() -> ServerMetadata:
        return ServerMetadata(
            name="gatehouse", version=package_version("gatehouse"), extensions=EXTENSIONS
        )

    @router.get("/models/stats", summary="Statistics of every model since it was loaded")
    async def statistics_of_all() -> Statistics:
        loaded = service.registry.loaded()
        return Statistics(model_stats=[model_statistics(model, metrics) for model in loaded])

    def statistics(model: Model) -> Statistics:
        return Statistics(model_stats=[model_statistics(model, metrics)])

    def config(model: Model) -> dict[str, Any]:
        return model_config(model, serving, service.registry.tables.get(model, NO_TABLES))

    add("", "Inputs and outputs of a model", metadata, ModelMetadata)
    add("/config", "Model configuration, as Triton's ModelConfig", config, dict[str, Any])
    add("/stats", "Statistics of a model since it was loaded", statistics, Statistics)


def _add_readiness(router: APIRouter, service: Service) -> None:
    @router.get(
        f"{_MODEL}/ready",
        summary="200 while a model is active and its tables are not too old",
        responses=errors(ModelNotFound, NotReady, Draining),
    )
    async def model_ready(model: str) -> ModelReady:
        check_version_ready(service, model)
        return ModelReady(name=model, ready=True)

    @router.get(
        f"{_VERSION}/ready",
        summary="200 while a version is loaded and its tables are not too old",
        responses=errors(ModelNotFound, VersionNotFound, NotReady, Draining),
    )
    async def version_ready(model: str, version: str) -> ModelReady:
        check_version_ready(service, model, _number(version))
        return ModelReady(name=model, ready=True)


def check_version_ready(service: Service, name: str, version: int | None = None) -> None:
    """Check that a version of a model, by default the active one, accepts requests.

    Raises:
        Draining: the server is shutting down.
        NotReady: models are still loading, or a table of the version is too old.
        ModelNotFound: no model of this name is active.
        VersionNotFound: `version` is not loaded.
    """
    service.readiness.check_started()
    model = service.registry.requested(name, version)
    if reason := service.readiness.why_not_ready(model):
        raise NotReady(reason)


def _number(version: str) -> int:
    if version.isascii() and version.isdecimal() and len(version) <= _LONGEST_VERSION:
        return int(version)
    raise VersionNotFound("version not found: a version is an integer above 0")


def _add_repository(
    router: APIRouter, service: Service, bodies: BodyReader, serving: ServingSettings
) -> None:
    schema = {"type": "object", "properties": {"ready": {"type": "boolean"}}}

    @router.post(
        "/repository/index",
        summary="Loaded and refused versions of every model",
        responses=errors(
            MalformedBody, RequestTimeout, PayloadTooLarge, UnsupportedMediaType, Overloaded
        ),
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": schema}}}},
    )
    async def index(request: Request) -> list[RepositoryEntry]:
        try:
            headers = read_headers(request.scope["headers"])
            length, coding = check_body_headers(
                headers, OpenInference.media_types, serving.limits.max_body_bytes
            )
            body = await bodies.read(
                request.receive, length=length, coding=coding, deadline=math.inf
            )
        except ClientDisconnected:
            return []
        document = decode(body, most_values=_MOST_VALUES) if body else {}
        ready = document.get("ready", False) if isinstance(document, dict) else None
        if not isinstance(ready, bool):
            raise MalformedBody("the body must be an object, and its ready true or false")
        return repository_index(service, ready_only=ready)


def _refuse_extensions(router: APIRouter) -> None:
    """Refuse calls of Triton's extensions that this server does not implement."""
    refused = {
        "shared memory": ("/systemsharedmemory/{rest:path}", "/cudasharedmemory/{rest:path}"),
        "trace settings": ("/trace/setting", f"{_MODEL}/trace/setting"),
        "log settings": ("/logging",),
        "loading and unloading over HTTP": (
            "/repository/models/{model}/load",
            "/repository/models/{model}/unload",
        ),
        "generation": (f"{_MODEL}/generate", f"{_MODEL}/generate_stream"),
    }

    def refusal(what: str) -> Callable[[], Awaitable[None]]:
        async def refuse() -> None:
            raise NotSupported(f"not supported: {what}")

        return refuse

    for what, paths in refused.items():
        for path in paths:
            methods = ["GET", "POST"]
            router.add_api_route(path, refusal(what), methods=methods, include_in_schema=False)


def _inputs(model: Model, tables: ModelTables) -> list[Input]:
    """Return the inputs of a model, and the keys of its tables that are no features."""
    features = {feature.name: feature for feature in model.manifest.inputs}
    keys = {bound.table.key: bound.key_input for bound in tables.all}
    return list((features | {n: key for n, key in keys.items() if n not in features}).values())


def model_metadata(
    model: Model, versions: Sequence[int], tables: ModelTables = NO_TABLES
) -> ModelMetadata:
    """Return a model's inputs, outputs and loaded versions.

    The first dimension is the number of candidates.

    User inputs accept a single row too, and inputs that a table has are optional, which the
    protocol cannot express.
    """
    manifest = model.manifest
    return ModelMetadata(
        name=manifest.name,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=[
            TensorMetadata(
                name=feature.name, datatype=datatypes_of(feature)[0], shape=[-1, _width(feature)]
            )
            for feature in _inputs(model, tables)
        ],
        outputs=[
            TensorMetadata(name=name, datatype="FP32", shape=[-1, 1])
            for name in output_names(manifest)
        ],
    )


def model_config(
    model: Model, serving: ServingSettings, tables: ModelTables = NO_TABLES
) -> dict[str, Any]:
    """Return a model's configuration as Triton's `ModelConfig` message in JSON."""
    manifest = model.manifest
    in_tables = {name for bound in tables.all for name in (bound.table.key, *bound.names)}
    kind = "KIND_CPU" if model.program.device.type == "cpu" else "KIND_GPU"
    return {
        "name": manifest.name,
        "platform": PLATFORM,
        "backend": "pytorch",
        "version_policy": {"specific": {"versions": [manifest.version]}},
        "max_batch_size": serving.limits.max_candidates,
        "input": [
            {
                "name": feature.name,
                "data_type": _CONFIG_TYPES[datatypes_of(feature)[0]],
                "format": "FORMAT_NONE",
                "dims": [_width(feature)],
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": feature.default is not None or feature.name in in_tables,
            }
            for feature in _inputs(model, tables)
        ],
        "output": [
            {
                "name": name,
                "data_type": "TYPE_FP32",
                "dims": [1],
                "label_filename": "",
                "is_shape_tensor": False,
            }
            for name in output_names(manifest)
        ],
        "instance_group": [
            {"name": f"{manifest.name}_0", "kind": kind, "count": serving.lanes, "gpus": []}
        ],
        "dynamic_batching": {
            "preferred_batch_size": [serving.max_batch_rows],
            "max_queue_delay_microseconds": round(serving.max_wait_s * 1e6),
            "preserve_ordering": False,
            "priority_levels": 3,
            "default_priority_level": 2,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round(serving.limits.default_timeout_s * 1e6),
                "allow_timeout_override": True,
            },
        },
        "default_model_filename": "model.ts",
    }


def model_statistics(model: Model, metrics: Metrics) -> ModelStatistics:
    """Return a model's statistics since it was loaded, for the native API and V2 together."""
    usage = metrics.requests.version(model.label)
    succeeded = usage.succeeded

    def over(count: int, duration_s: float) -> Duration:
        return Duration(count=count, ns=round(duration_s * 1e9))

    return ModelStatistics(
        name=model.manifest.name,
        version=str(model.manifest.version),
        last_inference=round(usage.last_unix_s * 1e3),
        inference_count=usage.rows,
        execution_count=usage.batches,
        inference_stats=InferenceStatistics(
            success=over(succeeded, usage.succeeded_s),
            fail=over(usage.failed, usage.failed_s),
            queue=over(succeeded, usage.queue_s),
            compute_input=over(succeeded, usage.collate_s),
            compute_infer=over(succeeded, usage.compute_s),
            compute_output=over(succeeded, usage.respond_s),
            cache_hit=over(0, 0.0),
            cache_miss=over(0, 0.0),
        ),
        batch_stats=[],
    )


def repository_index(service: Service, *, ready_only: bool) -> list[RepositoryEntry]:
    """Return the loaded versions with their roles, and the refused ones.

    With `ready_only`, neither those nor versions whose tables are too old.
    """
    registry, entries = service.registry, []
    for model in registry.loaded():
        stale = service.readiness.why_not_ready(model)
        if stale and ready_only:
            continue
        entries.append(
            RepositoryEntry(
                name=model.manifest.name,
                version=str(model.manifest.version),
                state="UNAVAILABLE" if stale else "READY",
                reason=stale or registry.damaged.get(model.label, ""),
                parameters={"role": registry.role(model)},
            )
        )
    if not ready_only:
        entries += [
            RepositoryEntry(
                name=artifact.model,
                version=str(artifact.version),
                state="UNAVAILABLE",
                reason=reason,
            )
            for artifact, reason in registry.refused.items()
        ]
    return entries


def _width(feature: Input) -> int:
    """Return the width of a tensor of this feature, or its limit for a list."""
    if isinstance(feature, IdInput):
        return 1
    return feature.dim if feature.kind == "dense" else feature.max_length
