"""HEAD requests (RFC 9110, section 9.3.2): answered as GET, without the body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Passes a HEAD request on as GET and drops the body of its response; headers stay."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        get = {**scope, "method": "GET"}  # a copy: the server reads the method of its own scope
        try:
            await self._app(get, receive, send_without_body)
        finally:
            if "route" in get:
                scope["route"] = get["route"]  # for logs and metrics
