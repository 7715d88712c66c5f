"""Headers for browsers: security headers of HTML pages, and CORS.

By default no other origin may call: responses have no CORS header, and a preflight request is
refused like any method that a route does not have.
"""

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ConfigurationInvalid

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_REQUEST_HEADERS = (
    *("authorization", "content-type", "content-encoding", "inference-header-content-length"),
    *("x-request-id", "x-request-priority", "x-request-timeout-ms", "x-routing-key"),
    "traceparent",
)
_RESPONSE_HEADERS = (
    "retry-after",
    "server-timing",
    "traceparent",
    "x-record-id",
    "x-request-id",
    "inference-header-content-length",
)

# Pages load only this server's own files and inline code; no page may frame them.
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
    """Adds headers to HTML pages: no foreign content, no framing, no referrer.

    A page may have a content security policy of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add the headers if the response is HTML."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                if any(name == b"content-type" and b"html" in value for name, value in headers):
                    own = {name for name, _ in headers}
                    added = [header for header in _PAGE_HEADERS if header[0] not in own]
                    message["headers"] = [*headers, *added]
            await send(message)

        await self._app(scope, receive, send_safely)


def parse_origins(text: str) -> list[str]:
    """Read origins separated by commas.

    Raises:
        ConfigurationInvalid: one of them is not an origin.
    """
    origins = [origin.strip() for origin in text.split(",") if origin.strip()]
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            rule = "must be scheme://host or scheme://host:port, such as https://example.org"
            raise ConfigurationInvalid(f"cors_origins: {rule}")
    return origins


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return `app`, wrapped so that pages of these origins may call it, if there are any."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_RESPONSE_HEADERS,
    )
