"""The composition root: settings become objects, and objects become one ASGI app."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from importlib.metadata import version

from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from app.api import models, open_inference as v2, operations, problems
from app.api.browsers import SecurityHeadersMiddleware, origins, shared_with
from app.api.open_inference_metadata import Serving
from app.api.openapi import document as openapi
from app.artifacts.store import Store
from app.engine.batcher import Batcher
from app.engine.hardware import device_named, start_lanes, warm_up_batches
from app.engine.lanes import Lane
from app.lifecycle.deployment import Deployment
from app.lifecycle.policies import PolicyFile
from app.lifecycle.registry import Registry
from app.protocol.native import Native
from app.protocol.open_inference.infer import OpenInference
from app.scoring.access_log import AccessLogMiddleware
from app.scoring.body import BodyReader
from app.scoring.budget import ByteBudget
from app.scoring.keys import Keys
from app.scoring.score import Dialect, Limits, ScoreRoutes
from app.scoring.service import Service
from app.server.tls import Certificate
from app.settings import Settings
from app.telemetry.event_loop import EventLoopMonitor
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Gatehouse:
    """The running parts that `serve` steers."""

    app: ASGIApp
    service: Service
    deployment: Deployment
    keys: Keys
    certificate: Certificate | None
    policy_file: PolicyFile
    metrics: Metrics
    lost: asyncio.Event
    """Set when a lane's device will never compute again: the process should end."""


@asynccontextmanager
async def gatehouse(settings: Settings) -> AsyncIterator[Gatehouse]:
    """Start the lanes and put everything together; on exit, stop the lanes that will.

    No model is loaded yet: that is `deployment.refresh()`.

    Raises:
        ConfigurationInvalid: a setting names what cannot be used.
    """
    secrets = None if settings.keys is None else settings.keys.get_secret_value()
    keys = Keys(text=secrets, file=settings.keys_file)
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    device = device_named(settings.device)
    metrics = Metrics()
    registry = Registry(metrics, default_model=settings.default_model)
    lost = asyncio.Event()
    lanes = start_lanes(
        device,
        settings.lanes,
        processes=settings.processes,
        max_batch_rows=settings.max_batch_rows,
        metrics=metrics,
        on_lost=lost.set,
    )
    try:
        batcher = _batcher(settings, lanes, metrics)
        service = Service(registry, batcher, lanes, metrics)
        policy_file = PolicyFile(settings.policies, service.policies, registry, metrics.ranking)
        deployment = Deployment(
            Store(settings.store),
            registry,
            lanes,
            metrics,
            device=device,
            warm_up=warm_up_batches(
                device,
                min_chunk_rows=settings.min_chunk_rows,
                max_batch_rows=settings.max_batch_rows,
            ),
            on_warm=batcher.learn,
        )
        app = create_app(settings, service, metrics, keys)
        with closing(EventLoopMonitor(metrics)):
            yield Gatehouse(app, service, deployment, keys, certificate, policy_file, metrics, lost)
    finally:
        for lane in lanes:
            lane.stop()


def _batcher(settings: Settings, lanes: Sequence[Lane], metrics: Metrics) -> Batcher:
    """Return the batcher of all lanes; its backlog is read at each scrape."""
    batcher = Batcher(
        lanes,
        max_batch_rows=settings.max_batch_rows,
        min_chunk_rows=settings.min_chunk_rows,
        max_wait_s=settings.max_wait_ms / 1e3,
        max_queue_rows=settings.max_queue_rows,
        metrics=metrics,
    )
    backlog = batcher.backlog
    metrics.watch("queue_rows", "Candidates that wait for a lane.", lambda: backlog.rows)
    metrics.watch("queue_requests", "Requests, or parts of one, that wait.", lambda: backlog.chunks)
    return batcher


def create_app(settings: Settings, service: Service, metrics: Metrics, keys: Keys) -> ASGIApp:
    """Return the whole HTTP interface: middleware, the score routes, then FastAPI's router."""
    fastapi = FastAPIOffline(
        title="Gatehouse",
        version=version("gatehouse"),
        description="Online ranking: one user, many candidates, a score per task, one rank score.",
        redoc_url=None,
        redirect_slashes=False,
    )
    fastapi.include_router(models.routes(service))
    fastapi.include_router(
        operations.routes(
            service,
            metrics,
            keys,
            lane_hang_s=settings.lane_hang_s,
            metrics_port=settings.metrics_port,
        )
    )
    problems.install(fastapi)
    openapi.install(fastapi, service.registry, keys)
    bodies = BodyReader(
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.body_timeout_ms / 1e3,
        budget=ByteBudget(settings.max_bodies_bytes, metrics),
    )
    limits = Limits(
        max_candidates=settings.max_candidates,
        default_timeout_s=settings.request_timeout_ms / 1e3,
    )
    serving = Serving(limits, settings.max_batch_rows, settings.max_wait_ms / 1e3, service.lanes)
    fastapi.include_router(v2.routes(service, bodies, serving, lane_hang_s=settings.lane_hang_s))
    dialects: list[Dialect] = [Native(), OpenInference()]
    app = ScoreRoutes(
        SecurityHeadersMiddleware(fastapi), service, metrics, bodies, limits, keys, dialects
    )
    return AccessLogMiddleware(
        shared_with(app, origins(settings.cors_origins)),
        service,
        metrics,
        log_sample=settings.log_sample,
        slow_request_s=settings.slow_request_ms / 1e3,
    )
