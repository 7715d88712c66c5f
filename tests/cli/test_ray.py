"""The Ray Serve application without a cluster: its options, a replica, demand and policy."""

import asyncio
import re
import threading
import warnings
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest
import yaml
from starlette.types import Message

pytest.importorskip("ray")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own code
    from ray.serve.schema import ServeDeploySchema

from app.cli import ray as application_module
from app.cli.parser import WrongUsage
from app.cli.ray import LARGEST_SHED, MAX_ONGOING_REQUESTS, DemandMeter, DemandPolicy, Options
from app.errors import ConfigurationInvalid
from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests import REPOSITORY


def deployed(**options):
    """The deployment, and the settings that its replicas get."""
    deployment = application_module.application(Options(**options))._bound_deployment
    [settings] = deployment.init_args
    return deployment, settings


def test_options_become_the_deployment_and_the_settings_of_its_replicas(tmp_path):
    deployment, settings = deployed(
        store=str(tmp_path), cpus="4", max_replicas="8", busy="0.5", drain_timeout_s="7"
    )
    assert (settings.store, settings.lanes, settings.drain_timeout_s) == (tmp_path, 4, 7)
    assert deployment.ray_actor_options == {"num_cpus": 4, "num_gpus": 0}
    assert deployment.max_ongoing_requests == MAX_ONGOING_REQUESTS
    config = deployment._deployment_config
    assert config.graceful_shutdown_timeout_s == 7
    autoscaling = config.autoscaling_config
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (1, 8)
    assert autoscaling.policy.policy_kwargs == {"busy": 0.5}
    # By value: the controller calls it, and has no torch.
    assert autoscaling.policy.get_policy()(0.5)(context({}, target=3)) == (3, {})


def test_mistakes_are_told_where_the_application_is_deployed(tmp_path):
    with pytest.raises(WrongUsage, match="max-wait-ms"):
        deployed(store=str(tmp_path), max_wait_ms="soon")
    with pytest.raises(WrongUsage, match='unknown option max_wait_sm; did you mean "max_wait_ms"'):
        deployed(store=str(tmp_path), max_wait_sm="1")
    with pytest.raises(WrongUsage, match="decided by Ray Serve: port"):
        deployed(store=str(tmp_path), port="8000")


def test_guide_s_configuration_and_arguments_are_those_of_the_application():
    guide = (REPOSITORY / "docker" / "REPLICAS.md").read_text(encoding="utf-8")
    guide = guide.split("\n## Ray Serve\n")[1].split("\n## ")[0]
    [block] = re.findall(r"^```yaml\n(.*?)^```$", guide, flags=re.DOTALL | re.MULTILINE)
    [written] = ServeDeploySchema.model_validate(yaml.safe_load(block)).applications
    assert written.import_path == f"{application_module.__name__}:application"
    _, settings = deployed(**written.args)
    assert (str(settings.store), settings.max_candidates) == ("/store", 1000)
    table = re.findall(r"^\| (`.+?`) \| ([\d., ]+) \|", guide, flags=re.MULTILINE)
    defaults = {
        name: float(value)
        for names, values in table
        for name, value in zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True)
    }
    assert defaults == Options().model_dump()


# A replica, as Ray Serve drives one


@pytest.fixture(autouse=True)
def process_untouched(monkeypatch):
    """A replica has a process of its own, whose logs and garbage collector it sets up."""
    monkeypatch.setattr("app.cli.ray.json_logs.configure", lambda *_, **__: None)
    monkeypatch.setattr("app.cli.ray.relieve_garbage_collector", lambda: None)
    monkeypatch.setattr("app.cli.ray.prometheus_client.disable_created_metrics", lambda: None)


def replica_of(**settings):
    return application_module.Replica(Settings(lanes=1, **settings))


@asynccontextmanager
async def lifespan(app):
    """Start an app and end it as Ray does."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    sent: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan"}, messages.get, sent.put))
    await messages.put({"type": "lifespan.startup"})
    assert await sent.get() == {"type": "lifespan.startup.complete"}
    yield
    await messages.put({"type": "lifespan.shutdown"})
    assert await sent.get() == {"type": "lifespan.shutdown.complete"}
    await task


async def test_replica_serves_reports_its_demand_and_ends(store):
    replica = replica_of(store=store.folder)
    app = await replica.__serve_build_asgi_app__()
    async with lifespan(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ray") as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            assert (await client.post("/v1/score", json=example)).status_code == 200
        await replica.check_health()
        assert replica.record_autoscaling_stats()["demand"] > 0
        replica._parts.lost.set()
        with pytest.raises(RuntimeError, match="device"):
            await replica.check_health()
        replica._parts.lost.clear()
        replica._tasks[0].cancel()
        await asyncio.wait(replica._tasks[:1])
        with pytest.raises(RuntimeError, match="no longer followed"):
            await replica.check_health()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]


async def test_replica_without_a_model_does_not_start(tmp_path):
    replica = replica_of(store=tmp_path)
    with pytest.raises(ConfigurationInvalid, match="nothing that can be served"):
        await replica.__serve_build_asgi_app__()
    await replica.close()


# Autoscaling


class Clocks:
    """The time, and the CPU time of the event loop's thread (s)."""

    def __init__(self, monkeypatch) -> None:
        self.time_s = self.cpu_s = 0.0
        monkeypatch.setattr("app.cli.ray.time.monotonic", lambda: self.time_s)
        monkeypatch.setattr("app.cli.ray.time.clock_gettime", lambda _: self.cpu_s)


@pytest.mark.parametrize(
    ("busy_s", "cpu_s", "requests", "shed", "demand"),
    [
        (4, 1, 10, 0, 0.2),  # of two lanes for ten seconds
        (4, 5, 10, 0, 0.5),  # the event loop is busier
        (20, 0, 10, 5, 2.0),  # half of the requests were shed
        (20, 0, 10, 10, 1 / (1 - LARGEST_SHED)),
        (0, 0, 0, 0, 0.0),
    ],
)
def test_demand_is_the_busy_share_over_the_share_that_is_not_shed(
    monkeypatch, busy_s, cpu_s, requests, shed, demand
):
    clocks, metrics = Clocks(monkeypatch), Metrics()
    metrics._requests.labels("/v1/score", "m", "200").inc(100)  # before
    meter = DemandMeter(metrics, lanes=2)
    for lane in ("lane-0", "lane-1"):
        metrics.batch("m/1", rows=1, requests=1, lane=lane, busy_s=busy_s / 2)
    for route in ("/v1/models/{model}/score", "/v2/models/{model}/infer"):
        metrics._requests.labels(route, "m", "200").inc(requests / 2)
    metrics._requests.labels("/readyz", "", "200").inc(1000)
    for _ in range(shed):
        metrics.shed("overloaded")
    clocks.time_s, clocks.cpu_s = 10, cpu_s
    assert meter.read() == pytest.approx(demand)
    clocks.time_s = 20
    assert meter.read() == 0  # since then, nothing


def context(demands, *, current=2, target=2):
    metrics = {"demand": dict(enumerate(demands))} if demands else {}
    return SimpleNamespace(
        aggregated_metrics=metrics, current_num_replicas=current, target_num_replicas=target
    )


def test_policy_asks_for_as_many_replicas_as_keep_their_share_busy():
    policy = DemandPolicy(0.5)
    assert policy(context([0.5, 0.5]))[0] == 2
    assert policy(context([0.5, 0.51]))[0] == 3
    assert policy(context([2.0, 2.0]))[0] == 8
    assert policy(context([0.0, 0.0]))[0] == 0  # Ray applies min_replicas
    assert policy(context([0.5], current=4))[0] == 4  # three have not reported yet
    assert policy(context([], target=7))[0] == 7
