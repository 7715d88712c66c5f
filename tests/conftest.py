"""Shared by all tests: asyncio as the only loop, one torch thread, and a tiny trained artifact."""

import functools
import inspect
import io
import os
import random
import secrets
import signal

import httpx
import hypothesis
import pytest
import torch
from filelock import FileLock
from httpx._transports import default
from rich.console import Console

from app.artifacts.store import Artifact, Store
from app.engine.hardware import usable_cores
from app.main import gatehouse
from app.settings import Settings
from models.training import experiment, train
from tests import TINY_EXPERIMENT
from tests.support.server import PATIENT
from tests.support.waiting import PATIENCE_S

torch.set_num_threads(1)
# No test depends on time, and a run fails only because of a change: its examples are those of the
# run before. To look for new ones: pytest --hypothesis-profile explore
hypothesis.settings.register_profile(
    "gatehouse",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(  # make test-fast
    "fast", hypothesis.settings.get_profile("gatehouse"), max_examples=20
)
hypothesis.settings.register_profile(
    "explore", hypothesis.settings.get_profile("gatehouse"), derandomize=False, max_examples=1000
)
hypothesis.settings.load_profile("gatehouse")

# A machine that runs other things may stop for seconds. These are for tests that do not test a
# time limit: the service's deadline of a request, and the 5 s after which httpx gives up.
os.environ.update(PATIENT)
_HTTPX_TIMEOUT = inspect.signature(httpx.request).parameters["timeout"].default
for _phase in ("connect", "read", "write", "pool"):
    setattr(_HTTPX_TIMEOUT, _phase, PATIENCE_S)

# httpx reads the certificates of all authorities for each client and each single call, in 17 ms.
default.create_ssl_context = functools.cache(  # type: ignore[attr-defined]
    default.create_ssl_context  # type: ignore[attr-defined]
)

# A shell starts background commands with SIGINT ignored, nohup ignores SIGHUP, and child processes
# inherit that. Tests that end a child process by a signal need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _ending in (signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_ending) is signal.SIG_IGN:
        signal.signal(_ending, signal.SIG_DFL)

MOST_WORKERS = 8  # each one holds torch, about 0.5 GB


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Use the cores of the container's CPU quota, not all cores of the machine."""
    return min(usable_cores(), MOST_WORKERS)


@pytest.fixture(autouse=True)
def _fixed_seeds(monkeypatch):
    """Draw the same weights, samples and seeds of tables' hashes in every run."""
    random.seed(0)
    torch.manual_seed(0)
    monkeypatch.setattr(secrets, "randbits", random.getrandbits)


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, worker_id) -> Artifact:
    """A trained and published version, shared by all workers. Copy it before changing it."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent  # the folder of the whole run; each worker has one inside it
    with FileLock(folder / "store.lock"):
        store = Store(folder / "store")
        for artifact in store.artifacts():
            return artifact
        console = Console(file=io.StringIO())
        return train.run(experiment.read(TINY_EXPERIMENT), store, quiet=True, console=console)


@pytest.fixture(scope="session")
def store(tiny) -> Store:
    """A store that contains only `tiny`."""
    return Store(tiny.folder.parent.parent)


@pytest.fixture(scope="module")
async def service(store):
    """The complete service without a socket, with two lanes and `tiny` active."""
    settings = Settings(
        store=store.folder,
        lanes=2,
        max_body_bytes=100_000,
        max_candidates=1000,
        request_timeout_ms=30_000,  # no test fails because the machine is slow
    )
    async with gatehouse(settings) as parts:
        await parts.start()
        yield parts


@pytest.fixture(scope="module")
async def client(service):
    """An HTTP client that calls `service` in this process."""
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
        yield client


@pytest.fixture
async def example(client):
    """A new copy of the model's example request."""
    return (await client.get("/v1/models/tiny")).json()["example_request"]
