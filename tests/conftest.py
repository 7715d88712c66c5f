"""What every test shares: plain asyncio, one thread for torch, and one tiny artifact a run."""

import io

import httpx
import hypothesis
import pytest
import torch
from rich.console import Console

from app.artifacts.store import Artifact, Store
from app.main import gatehouse
from app.settings import Settings
from models.training import experiment, train
from tests import TINY_EXPERIMENT

torch.set_num_threads(1)
hypothesis.settings.register_profile(  # no test is measured by time
    "gatehouse", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("gatehouse")


@pytest.fixture(autouse=True)
def _same_draws_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Artifact:
    """A trained and published version; tests that change it copy it first."""
    store = Store(tmp_path_factory.mktemp("store"))
    console = Console(file=io.StringIO())
    return train.run(experiment.read(TINY_EXPERIMENT), store, quiet=True, console=console)


@pytest.fixture(scope="session")
def store(tiny) -> Store:
    """The store that holds `tiny` and nothing else."""
    return Store(tiny.folder.parent.parent)


@pytest.fixture(scope="module")
async def service(store):
    """The whole service without a socket: two lanes, `tiny` active."""
    settings = Settings(
        store=store.folder,
        lanes=2,
        max_body_bytes=100_000,
        max_candidates=1000,
        request_timeout_ms=30_000,  # nothing here is to fail for a slow machine
    )
    async with gatehouse(settings) as parts:
        await parts.start()
        yield parts


@pytest.fixture(scope="module")
async def client(service):
    """A client of `service`."""
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
        yield client


@pytest.fixture
async def example(client):
    """A fresh copy of the request that the model itself offers as an example."""
    return (await client.get("/v1/models/tiny")).json()["example_request"]
