"""An HTTP client of a service in this process, without a socket."""

import httpx

from app.main import Gatehouse


def client_of(parts: Gatehouse) -> httpx.AsyncClient:
    """Return a client of the ASGI application; it closes as a context manager."""
    transport = httpx.ASGITransport(parts.app)
    return httpx.AsyncClient(transport=transport, base_url="http://gatehouse")
