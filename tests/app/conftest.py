"""The service over the tiny artifact, inside the test's own event loop."""

import httpx
import pytest

from app.main import gatehouse
from app.settings import Settings


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
        await parts.deployment.refresh()
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
