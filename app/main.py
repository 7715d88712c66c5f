"""The composition root: settings become objects, objects become one ASGI app, and it is served."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import prometheus_client
import torch
import uvicorn
import uvloop
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from app.api import models, openapi, operations, problems
from app.api.middleware import Observed
from app.api.score import Limits, ScoreRoutes
from app.artifacts.registry import Registry
from app.artifacts.store import Store
from app.engine.batcher import Batcher
from app.engine.deployment import Deployment
from app.engine.lanes import Lane, usable_cores
from app.engine.service import Service
from app.errors import ArtifactInvalid
from app.settings import Settings
from app.telemetry import logging as json_logs
from app.telemetry.metrics import Metrics

logger = logging.getLogger("app")

EXIT_OK, EXIT_UNUSABLE = 0, 2

_LINGER_S = 0.2  # bytes that were sent before the listener closed have arrived by then


@dataclass(frozen=True, slots=True)
class Gatehouse:
    """The running parts that `serve` steers."""

    app: ASGIApp
    service: Service
    deployment: Deployment


@asynccontextmanager
async def gatehouse(settings: Settings) -> AsyncIterator[Gatehouse]:
    """Start the lanes and put everything together; on exit, stop the lanes.

    No model is loaded yet: that is `deployment.refresh()`.
    """
    device = _device(settings)
    metrics = Metrics()
    registry = Registry(metrics, default_model=settings.default_model)
    lanes = _lanes(settings, device)
    try:
        batcher = Batcher(
            lanes,
            max_batch_rows=settings.max_batch_rows,
            min_piece_rows=settings.min_piece_rows,
            max_wait_s=settings.max_wait_ms / 1e3,
            max_queue_rows=settings.max_queue_rows,
            metrics=metrics,
        )
        metrics.watch("queue_rows", "Candidates that wait for a lane.", lambda: batcher.queued_rows)
        metrics.watch(
            "queue_requests",
            "Requests, or pieces of one, that wait.",
            lambda: batcher.queued_requests,
        )
        service = Service(registry, batcher, lanes, metrics)
        deployment = Deployment(
            Store(settings.store),
            registry,
            lanes,
            device=device,
            warm_up_rows=sorted({1, settings.min_piece_rows, settings.max_batch_rows}),
        )
        yield Gatehouse(create_app(settings, service, metrics), service, deployment)
    finally:
        for lane in lanes:
            lane.stop()


def create_app(settings: Settings, service: Service, metrics: Metrics) -> ASGIApp:
    """Return the whole HTTP interface: middleware, the score routes, then FastAPI's router."""
    fastapi = FastAPIOffline(
        title="Gatehouse",
        version=version("gatehouse"),
        description="Online ranking: one user, many candidates, a score per task, one rank score.",
        redoc_url=None,
    )
    fastapi.include_router(models.routes(service))
    fastapi.include_router(operations.routes(service, metrics, lane_hang_s=settings.lane_hang_s))
    problems.install(fastapi)
    openapi.install(fastapi, service.registry)
    limits = Limits(
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_ms / 1e3,
        max_candidates=settings.max_candidates,
        default_timeout_s=settings.request_timeout_ms / 1e3,
    )
    return Observed(
        ScoreRoutes(fastapi, service, metrics, limits),
        service,
        metrics,
        log_sample=settings.log_sample,
        slow_request_s=settings.slow_request_ms / 1e3,
    )


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and return the process's exit code.

    It is 0 after a drain, and 2 where the store holds artifacts and none can be served.
    """
    json_logs.configure(settings.log_level)
    # Each counter and histogram would have a second series, with the time of its creation.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    async with gatehouse(settings) as parts:
        config = uvicorn.Config(
            parts.app,
            host=settings.host,
            port=settings.port,
            http="httptools",
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.drain_timeout_s,
        )
        server = DrainingServer(config, parts.service, settings.drain_delay_s)
        deploying = asyncio.create_task(_deploy(settings, parts, server))
        await server.serve()
        deploying.cancel()
        try:
            await deploying
        except asyncio.CancelledError:
            return EXIT_OK
        except ArtifactInvalid as error:
            sys.stderr.write(f"gatehouse: nothing in the store can be served: {error}\n")
            return EXIT_UNUSABLE
        return EXIT_OK


async def _deploy(settings: Settings, parts: Gatehouse, server: uvicorn.Server) -> None:
    """Load what the store holds, then follow it; if none of it is fit, stop the server."""
    try:
        await parts.deployment.refresh()
    except ArtifactInvalid:
        server.should_exit = True
        raise
    # Torch alone makes half a million objects that live for ever. Collecting them again and again
    # was the whole latency tail: they leave the collector's sight, and it runs less often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    await parts.deployment.follow(settings.store_poll_s)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM and SIGINT and lets its caller return.

    Uvicorn raises the signal again when it has stopped, which makes the exit code 143, and closes
    connections on which a request is just arriving. Here a signal fails readiness, the server goes
    on for `drain_delay_s`, then it stops listening, waits for what was sent before, and finishes
    it. While it drains, every answer closes its connection. A second signal changes nothing.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain_delay_s: float) -> None:
        """Serve `config`; `service` is told when draining begins."""
        super().__init__(config)
        self._service = service
        self._drain_delay_s = drain_delay_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for listener in self.servers:
            for each in listener.sockets:
                host, port = each.getsockname()[:2]
                logger.info("listening on http://%s:%d", host, port)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on a signal for as long as the server runs."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for each in signals:
            loop.add_signal_handler(each, self._drain, loop)
        try:
            yield
        finally:
            for each in signals:
                loop.remove_signal_handler(each)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._service.draining:
            logger.info("draining: not ready any more, stopping in %g s", self._drain_delay_s)
            self._service.draining = True
            loop.call_later(self._drain_delay_s, self._stop, loop)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse new connections; let requests that are on their way on old ones still arrive."""
        for listener in self.servers:
            listener.close()
        loop.call_later(_LINGER_S, self._exit)

    def _exit(self) -> None:
        self.should_exit = True


def _device(settings: Settings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _lanes(settings: Settings, device: torch.device) -> list[Lane]:
    loop = asyncio.get_running_loop()
    by_default = usable_cores() if device.type == "cpu" else 1
    return [Lane(f"lane-{i}", loop) for i in range(settings.lanes or by_default)]
