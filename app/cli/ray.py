"""The service as a Ray Serve application: each replica is a whole service.

    serve run app.cli.ray:application store=/shared/store max_replicas=8

Ray Serve brings HTTP to the replicas, spreads them over the nodes of a cluster, replaces those that
end or fail their health check, and updates them one after the other. The service behind it is the
one of `gatehouse serve`: it batches, admits and follows its store itself.
"""

import asyncio
import math
import re
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import prometheus_client
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from starlette.types import ASGIApp, Receive, Scope, Send

from app.cli.parser import WrongUsage
from app.cli.settings_options import read_settings
from app.errors import ConfigurationInvalid, did_you_mean
from app.lifecycle.poll_timer import PollTimer
from app.main import Gatehouse, gatehouse
from app.server.file_watcher import FileWatcher
from app.server.process import relieve_garbage_collector
from app.settings import Settings
from app.telemetry import json_logs
from app.telemetry.metrics import Metrics

MAX_ONGOING_REQUESTS = 512
"""At each replica. Ray's default of 5 would keep requests from the batches and from admission."""

LARGEST_SHED = 0.9
"""Callers that retry inflate a larger share."""

_OF_RAY = ("host", "port", "processes", "metrics_port", "tls_cert", "tls_key", "drain_delay_s")
_SCORE_ROUTE = re.compile(r"/v[12]/.*(score|infer)")


class Options(BaseModel):
    """What `serve run` may set; other names are settings of the service."""

    model_config = ConfigDict(extra="allow")

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    cpus: float = Field(1, ge=0, description="of each replica; unless set, so many lanes")
    gpus: float = Field(0, ge=0)
    busy: float = Field(0.7, gt=0, le=1, description="share of the replicas to keep busy")
    look_back_s: float = Field(30.0, gt=0)
    upscale_delay_s: float = Field(30.0, ge=0)
    downscale_delay_s: float = Field(600.0, ge=0)


def application(options: Options) -> serve.Application:
    """Return the application for `serve run` and for the `import_path` of a Serve configuration.

    Raises:
        WrongUsage: a setting is wrong, or is Ray's to decide.
    """
    given = {name: str(value) for name, value in (options.model_extra or {}).items()}
    for name in given:
        if name not in Settings.model_fields:
            hint = did_you_mean(name, {*Settings.model_fields, *Options.model_fields})
            raise WrongUsage(f"unknown option {name}{hint}")
    if refused := [name for name in _OF_RAY if name in given]:
        raise WrongUsage(f"decided by Ray Serve: {', '.join(refused)}; see its http_options")
    fixed = {} if options.gpus else {"lanes": max(1, int(options.cpus))}
    settings = read_settings(given, fixed)
    autoscaling = AutoscalingConfig(
        min_replicas=options.min_replicas,
        max_replicas=max(options.min_replicas, options.max_replicas),
        look_back_period_s=options.look_back_s,
        metrics_interval_s=options.look_back_s / 3,
        upscale_delay_s=options.upscale_delay_s,
        downscale_delay_s=options.downscale_delay_s,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=f"{__name__}:DemandPolicy", policy_kwargs={"busy": options.busy}
        ),
    )
    deployment = serve.deployment(
        name="gatehouse",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config=autoscaling,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
    )
    replica = serve.ingress()(Replica)  # without an app: each replica builds its own
    return deployment(replica).bind(settings)


class Replica:
    """A whole service. Its methods are Ray Serve's protocol, on its event loop."""

    def __init__(self, settings: Settings) -> None:
        """Keep the settings, those of `gatehouse serve`, until Ray asks for the app."""
        self._settings = settings
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[Any]] = []
        self._parts: Gatehouse
        self._demand: DemandMeter

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Load the models and return the service; Ray sends requests afterwards.

        Raises:
            ConfigurationInvalid: nothing in the store can be served. An update ends here, and the
                replicas before it keep serving.
        """
        settings = self._settings
        json_logs.configure(settings.log_level, threaded=True)
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        parts = self._parts = await self._stack.enter_async_context(gatehouse(settings))
        await parts.start()
        if not parts.service.is_ready:
            raise ConfigurationInvalid(f'store "{settings.store}" has nothing that can be served')
        self._demand = DemandMeter(parts.metrics, parts.service.lane_count)
        following = [parts.deployment.follow(PollTimer(settings.store_poll_s))]
        for reloadable in (parts.keys, parts.policy_file):
            if reloadable.files:
                watcher = FileWatcher(reloadable, parts.metrics)
                following.append(watcher.follow(PollTimer(settings.store_poll_s)))
        self._tasks += map(asyncio.ensure_future, following)
        relieve_garbage_collector()
        return _with_shutdown(parts.app, self.close)

    async def check_health(self) -> None:
        """Fail as /livez does: Ray replaces the replica.

        Raises:
            RuntimeError: a lane is stuck, the device was lost, or the store is no longer followed.
        """
        if not self._parts.service.is_alive(self._settings.lane_hang_s):
            raise RuntimeError("a lane is stuck")
        if self._parts.lost.is_set():
            raise RuntimeError("the device fails every call")
        if ended := [task for task in self._tasks if task.done()]:
            raise RuntimeError(f"the store or a file is no longer followed: {ended}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the demand since the last call, for `DemandPolicy`."""
        return {"demand": self._demand.read()}

    async def close(self) -> None:
        """Stop the lanes; Ray has sent no requests for a while, and has waited for open ones."""
        for task in self._tasks:
            task.cancel()
        await self._stack.aclose()


def _with_shutdown(app: ASGIApp, close: Callable[[], Awaitable[None]]) -> ASGIApp:
    """Return an app that calls `close` when its lifespan ends."""

    async def with_shutdown(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        kind = ""
        while kind != "lifespan.shutdown":
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown":
                await close()
            await send({"type": f"{kind}.complete"})

    return with_shutdown


@dataclass(frozen=True, slots=True)
class _Totals:
    time_s: float
    lanes_busy_s: float
    loop_cpu_s: float
    shed: float
    requests: float


class DemandMeter:
    """Measures which share of this replica the offered requests would keep busy.

    That is the busy share of its lanes or of its event loop, whichever is more, divided by the
    share of requests that is not shed: what `docker/prometheus/scaling.yml` records for a fleet.
    """

    def __init__(self, metrics: Metrics, lanes: int) -> None:
        """Begin to measure; call it on the event loop's thread."""
        self._metrics, self._lanes = metrics, lanes
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._before = self._totals()

    def read(self) -> float:
        """Return the demand since the last call, in replicas: above 1 if requests were shed."""
        before, now = self._before, self._totals()
        self._before = now
        time_s = max(now.time_s - before.time_s, 1e-9)
        lanes = (now.lanes_busy_s - before.lanes_busy_s) / (time_s * self._lanes)
        loop = (now.loop_cpu_s - before.loop_cpu_s) / time_s
        requests = now.requests - before.requests
        shed = (now.shed - before.shed) / requests if requests else 0.0
        return max(lanes, loop) / (1 - min(max(shed, 0.0), LARGEST_SHED))

    def _totals(self) -> _Totals:
        totals = dict.fromkeys(("lane_busy_seconds", "shed", "requests"), 0.0)
        names = [f"gatehouse_{name}_total" for name in totals]
        self._metrics.drain()
        for family in self._metrics.registry.restricted_registry(names).collect():
            name = family.name.removeprefix("gatehouse_")
            for sample in family.samples:
                if name != "requests" or _SCORE_ROUTE.fullmatch(sample.labels["route"]):
                    totals[name] += sample.value
        return _Totals(
            time.monotonic(),
            totals["lane_busy_seconds"],
            time.clock_gettime(self._clock),
            totals["shed"],
            totals["requests"],
        )


class DemandPolicy:
    """Asks for as many replicas as keep the share `busy` of them busy; Ray adds limits, delays."""

    def __init__(self, busy: float) -> None:
        self._busy = busy

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Return the number of replicas, and no state to keep."""
        demands = (context.aggregated_metrics or {}).get("demand", {})
        if not demands:  # nothing was measured yet
            return context.target_num_replicas, {}
        # Replicas that have not reported get the mean of the others.
        demand = sum(demands.values()) / len(demands) * max(context.current_num_replicas, 1)
        return math.ceil(demand / self._busy - 1e-6), {}
