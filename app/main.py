"""The composition root: settings become objects, objects become one ASGI app, and it is served."""

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import NoReturn

import prometheus_client
import torch
import uvloop
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from app.api import models, openapi, operations, problems
from app.api.body import BodyReader
from app.api.browsers import SafePages, origins, shared_with
from app.api.budget import ByteBudget
from app.api.keys import Keys
from app.api.listeners import listen, log_address
from app.api.middleware import Observed
from app.api.native import Native
from app.api.rotation import Rotated, Rotation
from app.api.score import Limits, ScoreRoutes
from app.api.server import DrainingServer
from app.api.tls import Certificate
from app.artifacts.registry import Registry
from app.artifacts.store import Store
from app.engine.batcher import Batcher
from app.engine.deployment import Deployment
from app.engine.hardware import device_named, start_lanes, warm_up_rows
from app.engine.service import Service
from app.errors import ArtifactInvalid, ConfigurationInvalid
from app.processes import shared_socket
from app.settings import Settings
from app.telemetry import logging as json_logs
from app.telemetry.metrics import Metrics
from app.telemetry.pulse import Pulse

logger = logging.getLogger("app")

EXIT_OK, EXIT_LOST, EXIT_UNUSABLE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Gatehouse:
    """The running parts that `serve` steers."""

    app: ASGIApp
    service: Service
    deployment: Deployment
    keys: Keys
    certificate: Certificate | None
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
        batcher = Batcher(
            lanes,
            max_batch_rows=settings.max_batch_rows,
            min_piece_rows=settings.min_piece_rows,
            max_wait_s=settings.max_wait_ms / 1e3,
            max_queue_rows=settings.max_queue_rows,
            metrics=metrics,
        )
        metrics.watch(
            "queue_rows", "Candidates that wait for a lane.", lambda: batcher.backlog.rows
        )
        metrics.watch(
            "queue_requests",
            "Requests, or pieces of one, that wait.",
            lambda: batcher.backlog.pieces,
        )
        service = Service(registry, batcher, lanes, metrics)
        deployment = Deployment(
            Store(settings.store),
            registry,
            lanes,
            device=device,
            warm_up_rows=warm_up_rows(
                device,
                min_piece_rows=settings.min_piece_rows,
                max_batch_rows=settings.max_batch_rows,
            ),
            on_warm=batcher.learn,
        )
        app = create_app(settings, service, metrics, keys)
        with closing(Pulse(metrics)):
            yield Gatehouse(app, service, deployment, keys, certificate, lost)
    finally:
        for lane in lanes:
            lane.stop()


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
    app = ScoreRoutes(SafePages(fastapi), service, metrics, bodies, limits, keys, [Native()])
    return Observed(
        shared_with(app, origins(settings.cors_origins)),
        service,
        metrics,
        log_sample=settings.log_sample,
        slow_request_s=settings.slow_request_ms / 1e3,
    )


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and return the process's exit code.

    It is 0 after a drain, 1 after the device was lost, and 2 where the settings cannot be followed,
    or where the store holds artifacts and none can be served. The event loop is left as it is, for
    closing it would wait for a thread that hangs in somebody's model: the process should end now.
    """
    json_logs.configure(settings.log_level)
    # Each counter and histogram would have a second series, with the time of its creation.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    if settings.device == "cuda" and not torch.cuda.is_available():
        return _unusable("device: cuda is not available here")
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        return runner.run(_serve(settings))
    except ConfigurationInvalid as error:
        return _unusable(str(error))


async def _serve(settings: Settings) -> int:
    # Where the port is shared, it is not listened on before there are answers.
    ports = [settings.port] if settings.processes == 1 else []
    ports += [] if settings.metrics_port is None else [settings.metrics_port]
    listeners = listen(settings.host, ports, scheme=settings.scheme)
    if settings.metrics_port == 0:
        taken = listeners[-1].getsockname()[1]
        settings = settings.model_copy(update={"metrics_port": taken})
    async with gatehouse(settings) as parts:
        server = DrainingServer(
            parts.app,
            parts.service,
            keep_alive_s=settings.keep_alive_s,
            drain_delay_s=settings.drain_delay_s,
            drain_timeout_s=settings.drain_timeout_s,
            tls=None if parts.certificate is None else parts.certificate.context,
        )
        rotated: list[Rotated | None] = [parts.keys, parts.certificate]
        following = [
            asyncio.create_task(Rotation(each).follow(settings.store_poll_s))
            for each in rotated
            if each is not None and each.files
        ]
        deploying = asyncio.create_task(_deploy(settings, parts, server))
        deploying.add_done_callback(lambda _: setattr(server, "should_exit", True))
        watching = asyncio.create_task(_end_when_lost(parts, server))
        await server.serve(listeners)
        for each in (deploying, watching, *following):
            each.cancel()
        if parts.lost.is_set():
            return EXIT_LOST
        try:
            await deploying
        except asyncio.CancelledError:
            return EXIT_OK
        except ArtifactInvalid as error:
            return _unusable(f"nothing in the store can be served: {error}")


async def _deploy(settings: Settings, parts: Gatehouse, server: DrainingServer) -> NoReturn:
    """Load what the store holds, then follow it; end only if none of it is fit."""
    try:
        await parts.deployment.refresh()
    except OSError as error:
        logger.error("the store cannot be read: %s", error)  # noqa: TRY400  (it may come back)
    if not parts.service.is_ready:
        logger.warning("no artifacts in %s: waiting for a first one", settings.store)
    # Torch alone makes half a million objects that live for ever. Collecting them again and again
    # was the whole latency tail: they leave the collector's sight, and it runs less often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    if settings.processes > 1:
        # Not before: the kernel would share out connections to a process that cannot answer yet.
        listener = shared_socket(settings.host, settings.port)
        await server.listen_also(listener)
        log_address(listener, settings.scheme)
    await parts.deployment.follow(settings.store_poll_s)


async def _end_when_lost(parts: Gatehouse, server: DrainingServer) -> None:
    """Answer what is here, each with its error, and end: another process may fare better."""
    await parts.lost.wait()
    logger.critical("the device fails every call: this process ends")
    parts.service.draining = True
    server.should_exit = True


def _unusable(reason: str) -> int:
    sys.stderr.write(f"gatehouse: {reason}\n")
    return EXIT_UNUSABLE
