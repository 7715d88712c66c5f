"""What a browser is told: how far to trust a page of ours, and whose pages may call.

By default no other origin's page may: there is no CORS header at all, and a preflight is refused
like any method that a route does not have.
"""

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ConfigurationInvalid

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_SENT = (
    *("authorization", "content-type", "content-encoding", "inference-header-content-length"),
    *("x-request-id", "x-request-priority", "x-request-timeout-ms", "x-routing-key"),
)
_READ = ("retry-after", "server-timing", "x-request-id", "inference-header-content-length")

# Pages here are made of their own files, and of what stands in them; nobody may frame them.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_PAGE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _POLICY.encode()),
]


class SecurityHeadersMiddleware:
    """Adds headers to HTML pages that keep them from loading, or being loaded into, others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and watch for a page in its answer."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                if any(name == b"content-type" and b"html" in value for name, value in headers):
                    message["headers"] = [*headers, *_PAGE_HEADERS]
            await send(message)

        await self._app(scope, receive, send_safely)


def origins(text: str) -> list[str]:
    """Read origins that are separated by commas.

    Raises:
        ConfigurationInvalid: one of them is no origin.
    """
    found = [each.strip() for each in text.split(",") if each.strip()]
    for each in found:
        if not _ORIGIN.fullmatch(each):
            rule = "an origin is a scheme and a host, as in https://example.org"
            raise ConfigurationInvalid(f"cors_origins: {rule}")
    return found


def shared_with(app: ASGIApp, allowed: Sequence[str]) -> ASGIApp:
    """Let pages of these origins call `app`; where there are none, it is `app` itself."""
    if not allowed:
        return app
    return CORSMiddleware(
        app,
        allow_origins=allowed,
        allow_methods=["GET", "POST"],
        allow_headers=_SENT,
        expose_headers=_READ,
    )
