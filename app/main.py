"""The composition root: settings become objects, and objects become one ASGI app."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from app.api import (
    models,
    open_inference as v2,
    operations,
    problems,
    processes,
    rank,
    table_rows,
)
from app.api.browsers import SecurityHeadersMiddleware, parse_origins, with_cors
from app.api.console import page as console
from app.api.examples import example_request
from app.api.head import HeadMiddleware
from app.api.openapi import document as openapi
from app.artifacts.store import Store
from app.engine.batcher import Batcher
from app.engine.gpu.tables import DeviceTables
from app.engine.hardware import device_named, device_tables, start_lanes, warm_up_batches
from app.engine.lanes import Lane
from app.lifecycle.deployment import Deployment
from app.lifecycle.policies import PolicyFile
from app.lifecycle.registry import Registry
from app.lifecycle.table_follower import table_figures
from app.protocol.native import Native
from app.protocol.open_inference.infer import OpenInference
from app.scoring.access_log import AccessLog, AccessLogMiddleware
from app.scoring.asgi import ScoreRoutes
from app.scoring.body import BodyReader, ByteBudget
from app.scoring.call import Limits
from app.scoring.keys import Keys
from app.scoring.otel import span_recorder
from app.scoring.score import Scorer
from app.scoring.service import Service
from app.scoring.traffic_recorder import TrafficRecorder, require_pyarrow
from app.scoring.version_examiner import VersionExaminer
from app.settings import Settings
from app.telemetry.event_loop import EventLoopMonitor
from app.telemetry.metrics import Metrics
from app.telemetry.siblings import METRICS, Member, Render, render_all

if TYPE_CHECKING:  # it needs the extra `otel`
    from app.scoring.spans import SpanRecorder


SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter's lock while another one waits for it (s). A lane
needs it several times a batch, and with many small requests the event loop keeps it. At 9,000
requests/s on two cores p99 is 8 to 12 ms, and 8 to 23 with Python's default of 5 ms
(`python -m tests.bench.switch_interval`). C++ code keeps the lock for longer: 10 ms to load a
TorchScript file, and as much to freeze it."""


@dataclass(frozen=True, slots=True)
class Gatehouse:
    """The running parts that `serve` and `rank` use."""

    app: ASGIApp
    scorer: Scorer
    bodies: BodyReader
    service: Service
    deployment: Deployment
    keys: Keys
    policy_file: PolicyFile
    metrics: Metrics
    texts: Mapping[str, Render]
    """What this process tells its siblings, by name."""
    lost: asyncio.Event
    """Set when a lane's device will never compute again: the process should end."""

    async def start(self) -> None:
        """Load the policies, then the models of the store; check that they fit together.

        The policies come first, so that no model ever serves without them.

        Raises:
            ConfigurationInvalid: the policies cannot be used, or do not fit one of the models.
            ArtifactInvalid: the store holds artifacts, and none of them can serve.
            OSError: the store cannot be read now.
        """
        self.policy_file.load()
        await self.deployment.refresh()
        self.policy_file.check()


@asynccontextmanager
async def gatehouse(settings: Settings, member: Member | None = None) -> AsyncIterator[Gatehouse]:
    """Start the lanes and put everything together; stop the lanes on exit.

    Nothing serves before `start()`. One of several processes gets its `member`: its
    /metrics then has the series of all.

    Raises:
        ConfigurationInvalid: a setting cannot be used.
    """
    secrets = None if settings.keys is None else settings.keys.get_secret_value()
    keys = Keys(text=secrets, file=settings.keys_file)
    device = device_named(settings.device)
    metrics = Metrics()
    registry = Registry(metrics, default_model=settings.default_model)
    lost = asyncio.Event()
    with ExitStack() as stack:
        _hand_over_the_lock_soon(stack)
        recorder = _recorder(settings, metrics, stack)
        tables = device_tables(device, settings.gpu_table_bytes)
        lanes = _lanes(settings, device, metrics, tables, lost, stack)
        batcher = _batcher(settings, lanes, metrics)
        service = Service(registry, batcher, lanes)
        _watch(service, lanes, metrics, lane_hang_s=settings.lane_hang_s)
        log = stack.enter_context(closing(_access_log(settings, metrics)))
        scorer = Scorer(
            service,
            [Native(), OpenInference()],
            keys=keys,
            limits=_limits(settings),
            log=log,
            metrics=metrics,
            spans=_spans(settings, metrics, stack),
            recorder=recorder,
        )
        bodies = _bodies(settings, metrics)
        render = partial(asyncio.to_thread, metrics.render)
        scrape = render if member is None else partial(render_all, member, render)
        texts = {
            METRICS: render,
            processes.STATE: partial(processes.render_state, registry, member),
        }
        stack.enter_context(closing(EventLoopMonitor(metrics)))
        yield Gatehouse(
            create_app(settings, service, scorer, bodies, log, metrics, keys, scrape, member),
            scorer,
            bodies,
            service,
            _deployment(settings, device, service, lanes, metrics, tables),
            keys,
            PolicyFile(settings.policies, service.policies, registry, metrics.ranking),
            metrics,
            texts,
            lost,
        )


def _hand_over_the_lock_soon(stack: ExitStack) -> None:
    """Shorten Python's switch interval until the stack is closed."""
    stack.callback(sys.setswitchinterval, sys.getswitchinterval())
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def _lanes(
    settings: Settings,
    device: torch.device,
    metrics: Metrics,
    tables: DeviceTables | None,
    lost: asyncio.Event,
    stack: ExitStack,
) -> Sequence[Lane]:
    """Start the lanes; they are stopped with the stack."""
    lanes = start_lanes(
        device,
        settings.lanes,
        processes=settings.processes,
        max_batch_rows=settings.max_batch_rows,
        metrics=metrics,
        on_lost=lost.set,
        tables=tables,
    )
    for lane in lanes:
        stack.callback(lane.stop)
    return lanes


def _bodies(settings: Settings, metrics: Metrics) -> BodyReader:
    return BodyReader(
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.body_timeout_ms / 1e3,
        budget=ByteBudget(settings.max_bodies_bytes, metrics),
    )


def _access_log(settings: Settings, metrics: Metrics) -> AccessLog:
    slow_request_s = settings.slow_request_ms / 1e3
    return AccessLog(metrics, log_sample=settings.log_sample, slow_request_s=slow_request_s)


def _spans(settings: Settings, metrics: Metrics, stack: ExitStack) -> "SpanRecorder | None":
    """Return what exports spans, if the environment asks for it; it is closed with the stack."""
    spans = span_recorder(os.environ, metrics, scheme=settings.scheme)
    return None if spans is None else stack.enter_context(closing(spans))


def _deployment(
    settings: Settings,
    device: torch.device,
    service: Service,
    lanes: Sequence[Lane],
    metrics: Metrics,
    tables: DeviceTables | None,
) -> Deployment:
    return Deployment(
        Store(settings.store),
        service.registry,
        lanes,
        metrics,
        device=device,
        warm_up_sizes=warm_up_batches(
            device,
            min_chunk_rows=settings.min_chunk_rows,
            max_batch_rows=settings.max_batch_rows,
        ),
        on_warm=service.batcher.learn,
        examiner=VersionExaminer(service.policies, example_request, settings.record),
        place_table=None if tables is None else tables.place,
    )


def _recorder(settings: Settings, metrics: Metrics, stack: ExitStack) -> TrafficRecorder | None:
    """Return what records requests, if a folder for them is set; it is closed with the stack.

    Raises:
        ConfigurationInvalid: pyarrow is not installed, or the folder can never be written.
    """
    if settings.record is None:
        return None
    require_pyarrow()
    if not settings.record_share:  # its recorded traffic is only read
        return None
    recorder = TrafficRecorder(
        settings.record,
        share=settings.record_share,
        max_bytes=settings.record_max_bytes,
        gives_ids=settings.record_ids == "random",
        on_counted=metrics.recorded,
    )
    return stack.enter_context(closing(recorder))


def _batcher(settings: Settings, lanes: Sequence[Lane], metrics: Metrics) -> Batcher:
    """Return the batcher of all lanes; its queues are read at each scrape."""
    batcher = Batcher(
        lanes,
        max_batch_rows=settings.max_batch_rows,
        min_chunk_rows=settings.min_chunk_rows,
        max_wait_s=settings.max_wait_ms / 1e3,
        max_queue_rows=settings.max_queue_rows,
        metrics=metrics,
    )
    queues = batcher.queues
    metrics.watch("queue_rows", "Candidates that wait for a lane.", lambda: queues.rows)
    metrics.watch("queue_requests", "Requests, or parts of one, that wait.", lambda: queues.chunks)
    return batcher


def _watch(
    service: Service, lanes: Sequence[Lane], metrics: Metrics, *, lane_hang_s: float
) -> None:
    """Export what alerts are about and nothing else counts; read at each scrape."""
    metrics.watch("ready", "1 while /readyz returns 200.", lambda: service.is_ready)
    metrics.watch(
        "refused_versions",
        "Versions in the store that were refused: they do not serve.",
        lambda: len(service.registry.refused),
    )
    metrics.watch(
        "refused_tables",
        "Item and user tables, and deltas, that were refused: they do not serve.",
        lambda: len(service.registry.refused_tables),
    )
    metrics.watch_tables(lambda: table_figures(service.registry))
    metrics.ranking.watch_drift(service.drift.features, service.drift.scores)
    metrics.watch_lanes({lane.name: partial(lane.is_alive, lane_hang_s) for lane in lanes})


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_candidates=settings.max_candidates,
        max_body_bytes=settings.max_body_bytes,
        default_timeout_s=settings.request_timeout_ms / 1e3,
    )


def create_app(
    settings: Settings,
    service: Service,
    scorer: Scorer,
    bodies: BodyReader,
    log: AccessLog,
    metrics: Metrics,
    keys: Keys,
    scrape: Render,
    member: Member | None,
) -> ASGIApp:
    """Return the whole HTTP interface: access log, CORS, score calls, then FastAPI's router."""
    fastapi = FastAPIOffline(
        title="Gatehouse",
        version=version("gatehouse"),
        description="Online ranking: one user, many candidates, a score per task, one rank score.",
        redoc_url=None,
        redirect_slashes=False,
    )
    lane_hang_s = settings.lane_hang_s
    serving = v2.ServingSettings(
        scorer.limits, settings.max_batch_rows, settings.max_wait_ms / 1e3, service.lane_count
    )
    routers = [
        models.routes(service, metrics.gates, keys),
        rank.routes(service, bodies, keys),
        table_rows.routes(service.registry, keys),
        operations.routes(
            service, scrape, keys, lane_hang_s=lane_hang_s, metrics_port=settings.metrics_port
        ),
        processes.routes(service.registry, member),
        console.routes(),
        problems.router,
        v2.routes(service, bodies, metrics, serving, lane_hang_s=lane_hang_s),
    ]
    for router in routers:
        fastapi.include_router(router)
    problems.install(fastapi, routers)
    openapi.install(fastapi, service.registry, keys)
    app = ScoreRoutes(HeadMiddleware(SecurityHeadersMiddleware(fastapi)), scorer, bodies)
    allowed = parse_origins(settings.cors_origins)
    return AccessLogMiddleware(with_cors(app, allowed), service.readiness, log)
